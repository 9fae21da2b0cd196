"""Restored data measured against ground truth, beside classical methods."""
