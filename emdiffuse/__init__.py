"""emdiffuse: electron-microscopy restoration with diffusion models, from raw files to measured OME-Zarr."""

__version__ = "0.1.0"
