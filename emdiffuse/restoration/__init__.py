"""Restoration of a volume: plan, tiles, blending, stitching; independent of the number of workers."""
