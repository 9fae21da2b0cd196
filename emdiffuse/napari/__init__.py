"""The napari plugin: a reader of OME-Zarr, and a widget that restores a layer.

Qt is only imported when napari loads a contribution listed in ``napari.yaml``.
"""
