#!/bin/sh
# Snakemake runs a copy of this in the environment that it made with `--sdm conda`, from the folder of the run, wherever
# that is; rules/common.smk says where the package lies, and its version where the workflow came with the package.
set -e
: "${EMDIFFUSE_SOURCE:?}" "${EMDIFFUSE_VERSION:?}"
if [ -f "$EMDIFFUSE_SOURCE/pyproject.toml" ]; then
  python -m pip install --no-deps --editable "$EMDIFFUSE_SOURCE"
else
  python -m pip install --no-deps "emdiffuse==$EMDIFFUSE_VERSION"
fi
