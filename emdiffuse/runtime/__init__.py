"""Common runtime of all stages: devices, threads, progress, atomic writes, errors."""
