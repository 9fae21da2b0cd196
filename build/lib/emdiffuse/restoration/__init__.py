"""Restoring a volume: plan, tiles, blending, stitching; any number of workers gives the same result."""
