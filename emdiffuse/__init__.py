"""emdiffuse: electron-microscopy restoration with diffusion models, from raw files to evaluated OME-Zarr."""

from importlib import metadata

try:
    __version__ = metadata.version("emdiffuse")
except metadata.PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"
