#!/bin/sh
# Snakemake runs a copy of this script in the `--sdm conda` environment, from the run's working directory;
# rules/common.smk sets the path and version of the package.
set -e
: "${EMDIFFUSE_SOURCE:?}" "${EMDIFFUSE_VERSION:?}"
if [ -f "$EMDIFFUSE_SOURCE/pyproject.toml" ]; then
  python -m pip install --no-deps --editable "$EMDIFFUSE_SOURCE"
else
  python -m pip install --no-deps "emdiffuse==$EMDIFFUSE_VERSION"
fi
