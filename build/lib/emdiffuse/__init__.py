"""emdiffuse: electron-microscopy restoration with diffusion models, from raw files to measured OME-Zarr."""

from importlib import metadata

try:
    __version__ = metadata.version("emdiffuse")
except metadata.PackageNotFoundError:  # a copy of the source that was never installed
    __version__ = "0+unknown"
