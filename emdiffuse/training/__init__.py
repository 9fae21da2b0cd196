"""The training loop, and its launch locally or on SLURM."""
