"""Registration of image pairs, and alignment of slices."""
