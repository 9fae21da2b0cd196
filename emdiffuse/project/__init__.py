"""The commands `init`, `doctor` and `estimate`, and the packaged workflow."""
