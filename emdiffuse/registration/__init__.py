"""The alignment of what a model learns from: slices of volumes (`volumes`), pairs of images (`pairs`)."""
