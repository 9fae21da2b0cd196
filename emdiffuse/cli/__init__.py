"""The command line: one thin command per stage, in the order of the pipeline.

Conventions
-----------
* Input paths come first, then the output. Settings are the JSON (or YAML) text of a section of the
  configuration.
* A user's mistake gives one line, ``error: ...``, and exit code 1; anything else is a defect and keeps its
  traceback.
* Heavy imports are inside the commands, so that ``--help`` is fast and threads are set before numpy and torch
  are imported.
"""

from emdiffuse.cli import adapt, models, project, stages, tools
from emdiffuse.cli.app import app, main

__all__ = ["adapt", "app", "main", "models", "project", "stages", "tools"]
