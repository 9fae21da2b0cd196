"""The command line: one thin command a stage, in the order of the chain.

Conventions
-----------
* Paths of what is read come first, then the output. Settings are the JSON (or YAML) text of a section of the
  configuration.
* A user's mistake is one line, ``error: ...``, and exit code 1; anything else is a defect and keeps its
  traceback.
* Heavy imports stand inside the commands, so that ``--help`` is quick and threads are set before numpy and
  torch load.
"""

from emdiffuse.cli import adapt, models, project, stages, tools
from emdiffuse.cli.app import app, main

__all__ = ["adapt", "app", "main", "models", "project", "stages", "tools"]
