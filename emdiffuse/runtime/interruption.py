"""Handling of interrupting signals: the work saves at the next safe point, and stops.

Conventions
-----------
* The first signal is only recorded; the work checks it between steps, so that only complete steps are saved.
  A second signal of the same kind ends the process at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from emdiffuse.runtime.errors import EmdiffuseError


class Interrupted(EmdiffuseError):
    """Raised when work stopped because of a signal, after saving its state."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


class Stop:
    """Record of whether a signal has arrived.

    Attributes
    ----------
    number : int
        Number of the first signal; 0 until one arrives.
    """

    number = 0

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Record a signal, and restore the default action for the next one of its kind."""
        self.number = self.number or number
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def caught(*numbers: int) -> Iterator[Stop]:
    """Record signals during a `with` statement, in the main thread."""
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
