"""What every stage runs on: devices, threads, progress, atomic writes, errors."""
