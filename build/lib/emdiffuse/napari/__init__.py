"""The plugin of napari: a reader of OME-Zarr, and a widget that restores a layer.

Nothing here imports Qt before napari asks for it: ``napari.yaml`` names what there is.
"""
