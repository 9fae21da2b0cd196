"""``python -m emdiffuse.cli``."""

from emdiffuse.cli import main

main()
