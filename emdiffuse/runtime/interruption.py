"""Signals that interrupt work: it saves at the next safe point, and stops.

Conventions
-----------
* The first signal is only noted; the work looks at it between its steps, so that what is saved is never half
  a step. A second one of the same kind ends the process at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from emdiffuse.runtime.errors import EmdiffuseError


class Interrupted(EmdiffuseError):
    """A work that stopped because of a signal, after it saved what it had."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


class Stop:
    """Whether a signal has come.

    Attributes
    ----------
    number : int
        The first signal that came; 0 while none has.
    """

    number = 0

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal: note it, and let the next one of its kind do what it does by default."""
        self.number = self.number or number
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def caught(*numbers: int) -> Iterator[Stop]:
    """Note signals for the length of a `with` statement, in the main thread."""
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
