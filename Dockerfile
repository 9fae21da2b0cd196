# emdiffuse with the whole pipeline, in the versions of requirements.lock.
#   docker build --tag emdiffuse .                                  for CPUs
#   docker build --tag emdiffuse:cuda --build-arg VARIANT=cuda .    for NVIDIA GPUs
#   docker run --rm --volume "$PWD:/data" emdiffuse enhance scan.tif clean.tif
ARG PYTHON=3.11-slim-bookworm
FROM python:${PYTHON}

ARG VARIANT=cpu
ARG VERSION=0.1.0

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /opt/emdiffuse

# Torch first, since it changes least: its own index has CPU builds, PyPI those with CUDA.
COPY requirements.lock ./
RUN case "${VARIANT}" in \
      cpu) index=https://download.pytorch.org/whl/cpu ;; \
      cuda) index=https://pypi.org/simple ;; \
      *) echo "VARIANT is cpu or cuda, not ${VARIANT}" >&2; exit 1 ;; \
    esac; \
    pip install --no-cache-dir --constraint requirements.lock --index-url "${index}" torch torchvision

COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY emdiffuse emdiffuse
COPY workflow workflow
COPY profiles profiles
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_EMDIFFUSE="${VERSION}" \
    pip install --no-cache-dir --constraint requirements.lock ".[cluster,formats]" \
 && useradd --uid 1000 --create-home microscopist

USER 1000
WORKDIR /data
ENTRYPOINT ["emdiffuse"]
CMD ["--help"]
