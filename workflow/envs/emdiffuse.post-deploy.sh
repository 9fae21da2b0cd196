#!/bin/sh
# Snakemake runs this in the environment that it made with `--sdm conda`, from the folder of the run.
set -e
python -m pip install --no-deps --editable .
