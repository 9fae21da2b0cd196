#!/usr/bin/env bash
# Fill .gpu/ (ignored by git) for an offline GPU machine: wheels for Python 3.12, and install.sh, which installs them
# there without changing its own torch, numpy and so on.
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
