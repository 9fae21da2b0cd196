"""Restoration without a workflow: one file, or a folder that fills."""
