"""Conversion of raw files to canonical OME-Zarr."""
