#!/bin/sh
# Snakemake runs this in the environment that it made with `--sdm conda`, from the folder of the run: a checkout, or a
# folder whose Snakefile uses the workflow as a module.
set -e
if [ -f emdiffuse/__init__.py ]; then
  python -m pip install --no-deps --editable .
else
  python -m pip install --no-deps emdiffuse
fi
