"""What a training's curve says: how long it takes, why it ended, what was kept, what more would give.

Conventions
-----------
* A *history* is what was found at each validation, in order: `step`, `seconds`, `validation_psnr` (dB), ...
  Where nothing is clean there is `validation_loss` instead, the squared error to noisy pixels: see `score`.
  An entry of step 0 is of the model that the weights are begun from, which is scored before anything is
  learned. The best entry is kept, the first of equals: nothing learned is kept where nothing is better.
* The *slope* of the curve is that of a line through its last third, by least squares, with its standard error
  from the residuals. The learning rate falls towards the end of a training: a curve that is flat there says
  that more steps of this plan would not help, not that nothing more could be learned.
"""

from __future__ import annotations

import math
import time
from operator import itemgetter
from typing import Literal

import numpy as np
from pydantic import Field, JsonValue

from emdiffuse.config import Training
from emdiffuse.config.settings import Record
from emdiffuse.runtime.progress import clock

History = list[dict[str, float]]
LAST_SHARE = 1 / 3
"""Share of the steps whose slope is told."""
FEWEST = 5
"""Validations that a slope is told from, at least; earlier ones are taken where the last third has fewer."""
CLEAR = 2.0
"""Standard errors by which a slope must differ from 0 to be told as one."""
TIMED_SECONDS = 10.0
"""Seconds of steps after which the time of the whole training is told."""


class Outlook(Record):
    """What a training's curve says, for ``metrics.json``, the card and the report.

    Attributes
    ----------
    ended
        Why the training ended.
    kept_step
        The step whose weights are kept; 0 is the model that they were begun from.
    gain
        dB on the held-out part over the model that the weights were begun from; None where there is none.
    rise, error
        dB that the last third of the curve rose by, and the standard error of that; None where there are too
        few validations to tell.
    verdict
        Whether more steps would help.
    """

    ended: str
    kept_step: int = Field(ge=0)
    gain: float | None = None
    rise: float | None = None
    error: float | None = None
    verdict: Literal["more", "enough", "unclear"] = "unclear"

    @property
    def sentences(self) -> list[str]:
        """All of it in words."""
        return [self.ended, self.kept, self.sentence]

    def as_json(self) -> dict[str, JsonValue]:
        """Return it for ``metrics.json``, with its sentences."""
        return {**self.model_dump(mode="json"), "sentences": list(self.sentences)}

    @property
    def kept(self) -> str:
        """Say which state was kept."""
        if self.gain is None:
            return f"kept: the state after step {self.kept_step}, the best on the held-out part"
        if self.kept_step == 0:
            return (
                "no state was better on the held-out part than the model that it began from: the weights are "
                "those of that model, unchanged"
            )
        return (
            f"kept: the state after step {self.kept_step}, on the held-out part {self.gain:.2f} dB better "
            "than the model that it began from"
        )

    @property
    def sentence(self) -> str:
        """Say whether more steps would help."""
        if self.rise is None or self.error is None:
            return "there are too few validations to tell whether more steps would help"
        measured = f"{abs(self.rise):.2f} ± {self.error:.2f} dB"
        if self.verdict == "more":
            return f"the last third of the curve rose by {measured}: more steps would help"
        if self.verdict == "enough":
            return f"the last third of the curve fell by {measured}: more steps would not help"
        signed = f"{self.rise:+.2f} ± {self.error:.2f} dB"
        return f"the last third is flat within its error ({signed}): more steps would hardly help"


def outlook(history: History, ended: str) -> Outlook:
    """Return what a training's curve says.

    Parameters
    ----------
    history : list of dict
        See the module; not empty.
    ended : str
        Why the training ended.
    """
    best = max(history, key=score)
    gain = score(best) - score(history[0]) if begun(history) else None
    found = slope(history)
    known = {"ended": ended, "kept_step": int(best["step"]), "gain": gain}
    if found is None:
        return Outlook(**known)
    rise, error = found
    verdict: Literal["more", "enough", "unclear"] = "unclear"
    if abs(rise) > CLEAR * error:
        verdict = "more" if rise > 0 else "enough"
    return Outlook(**known, rise=rise, error=error, verdict=verdict)


def score(entry: dict[str, float]) -> float:
    """Return what weights are chosen by, in dB: PSNR to the truth, or where there is none to noisy pixels."""
    if "validation_psnr" in entry:
        return entry["validation_psnr"]
    return 10 * math.log10(4 / max(entry["validation_loss"], 1e-12))


def begun(history: History) -> bool:
    """Tell whether the first entry is of a model that the weights were begun from."""
    return bool(history) and history[0]["step"] == 0


def slope(history: History) -> tuple[float, float] | None:
    """Return how much the last third of the curve rose by, in dB, and the standard error of that.

    Parameters
    ----------
    history : list of dict
        See the module.

    Returns
    -------
    tuple of float or None
        None where there are fewer than `FEWEST` validations.
    """
    if len(history) < FEWEST:
        return None
    steps, values = (np.array([of(e) for e in history], float) for of in (itemgetter("step"), score))
    first = min(np.searchsorted(steps, math.floor(steps[-1] * (1 - LAST_SHARE))), len(steps) - FEWEST)
    x, y = steps[first:], values[first:]
    x = (x - x.mean()) / (x[-1] - x[0])
    rise = float(x @ y / (x @ x))
    residuals = y - y.mean() - rise * x
    return rise, float(math.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x)))


class Timing:
    """How long a training will take, told once, when its first steps have been timed.

    Parameters
    ----------
    training : Training
        Its settings.
    limit : int
        Most steps.
    step : int
        The first step of this run.
    seconds : float
        Wall time before this run.
    """

    def __init__(self, training: Training, limit: int, step: int, seconds: float) -> None:
        self.training, self.limit, self.first, self.before = training, limit, step, seconds
        self.begin = time.monotonic()
        self.told = False

    def after(self, step: int) -> str | None:
        """Return the sentence after a step, when it is time; else None."""
        passed = time.monotonic() - self.begin
        taken = step - self.first
        if self.told or taken < 2 or passed < TIMED_SECONDS:
            return None
        self.told = True
        return expected(self.training, self.limit, self.first, self.before, taken / passed)


def expected(training: Training, limit: int, step: int, seconds: float, rate: float) -> str:
    """Say how long a training will take here.

    Parameters
    ----------
    training : Training
        Its settings.
    limit : int
        Most steps.
    step, seconds : int, float
        Steps taken before, and their wall time.
    rate : float
        Steps a second, measured.
    """
    by_steps = (limit - step) / rate
    by_time = 60 * training.minutes - seconds if training.minutes else math.inf
    left = min(by_steps, by_time)
    steps = limit if by_steps <= by_time else step + int(by_time * rate)
    sooner = (
        f", sooner where {training.patience} validations in a row are no better" if training.patience else ""
    )
    return f"{rate:.2g} steps a second here: {clock(left)} for the steps up to {steps}{sooner}"
