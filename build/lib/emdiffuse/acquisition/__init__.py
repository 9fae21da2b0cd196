"""Raw files to canonical OME-Zarr."""
