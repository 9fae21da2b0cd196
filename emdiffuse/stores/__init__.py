"""Data on disk between stages: OME-Zarr volumes, image pairs, intensity scaling."""
