#!/usr/bin/env bash
# Fill .gpu/ (ignored by git) with what a GPU machine without network lacks: wheels for Python 3.12, and install.sh,
# which installs them there and leaves its own torch, numpy and the like alone.
#   benchmarks/gpu_pack.sh            here
#   bash .gpu/install.sh && python benchmarks/gpu.py --out OUT      there, in the working tree
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(pydantic pydantic-core typing-inspection annotated-types zarr numcodecs donfig google-crc32c imagecodecs submitit cloudpickle)
mkdir -p .gpu/wheels
python -m pip download --quiet --no-deps --dest .gpu/wheels --python-version 3.12 --only-binary :all: \
  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 "${packages[@]}"
cat >.gpu/install.sh <<'INSTALL'
set -e
python -m pip install --quiet --no-index --no-deps "$(dirname "$0")"/wheels/*.whl
python -c "import emdiffuse.training.train, emdiffuse.restoration.tiles; print('emdiffuse runs from the working tree')"
INSTALL
du -sh .gpu
