"""Restoration without a workflow: of one file, or of a watched folder."""
