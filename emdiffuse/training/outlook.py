"""Assessment of a training curve: its duration, why it ended, what was kept, and whether to continue.

Conventions
-----------
* A *history* lists the validations in order: `step`, `seconds`, `validation_psnr` (dB), ... Without clean
  images it has `validation_loss` instead, the squared error against noisy pixels: see `score`. An entry of
  step 0 is the score of the starting model before training. The best entry is kept, the first of equals, so
  the starting model is kept unless something is better.
* The *slope* of the curve is that of a least-squares line through its last third, with its standard error
  from the residuals. Because the learning rate falls towards the end, a flat curve shows that more steps of
  this schedule would not help, not that nothing more could be learned.
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
Verdict = Literal["more", "little", "past", "enough", "unclear"]
"""The last third rises; hardly rises; rises, but stays below an earlier state; falls; or is flat."""
LAST_SHARE = 1 / 3
"""Fraction of the steps over which the slope is measured."""
FEWEST = 5
"""Minimum number of validations for a slope; earlier ones are included if the last third has fewer."""
CLEAR = 2.0
"""Number of standard errors by which a slope must differ from 0 to be significant."""
WORTHWHILE = 0.05
"""Minimum rise of the PSNR, in dB, for which more steps are worthwhile."""
TIMED_SECONDS = 10.0
"""Seconds of training after which its total time is estimated."""


class Outlook(Record):
    """Assessment of a training curve, for ``metrics.json``, the card and the report.

    Attributes
    ----------
    ended
        Why the training ended.
    kept_step
        Step whose weights are kept; 0 is the starting model.
    gain
        Gain on the held-out part over the starting model, in dB; None without one.
    rise, error
        Rise of the last third of the curve in dB, and its standard error; None with too few validations.
    verdict
        Whether more steps would help.
    """

    ended: str
    kept_step: int = Field(ge=0)
    gain: float | None = None
    rise: float | None = None
    error: float | None = None
    verdict: Verdict = "unclear"

    @property
    def sentences(self) -> list[str]:
        """The assessment in words."""
        return [self.ended, self.kept, self.sentence]

    def as_json(self) -> dict[str, JsonValue]:
        """Return the assessment for ``metrics.json``, with its sentences."""
        return {**self.model_dump(mode="json"), "sentences": list(self.sentences)}

    @property
    def kept(self) -> str:
        """Return which state was kept, in words."""
        if self.gain is None:
            return f"kept: the state after step {self.kept_step}, the best on the held-out part"
        if self.kept_step == 0:
            return (
                "no state was better on the held-out part than the starting model, whose weights are kept "
                "unchanged"
            )
        return (
            f"kept: the state after step {self.kept_step}, on the held-out part {self.gain:.2f} dB better "
            "than the starting model"
        )

    @property
    def sentence(self) -> str:
        """Return whether more steps would help, in words."""
        if self.rise is None or self.error is None:
            return "there are too few validations to tell whether more steps would help"
        measured = f"{abs(self.rise):.2f} ± {self.error:.2f} dB"
        if self.verdict == "more":
            return f"the last third of the curve rose by {measured}: more steps would help"
        if self.verdict == "little":
            return f"the last third of the curve rose by only {measured}: more steps would hardly help"
        if self.verdict == "past":
            return (
                f"the last third of the curve rose by {measured}, but stayed below step {self.kept_step}: "
                "more steps would hardly help"
            )
        if self.verdict == "enough":
            return f"the last third of the curve fell by {measured}: more steps would not help"
        signed = f"{self.rise:+.2f} ± {self.error:.2f} dB"
        return f"the last third is flat within its error ({signed}): more steps would hardly help"


def outlook(history: History, ended: str) -> Outlook:
    """Assess a training curve.

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
    verdict: Verdict = "unclear"
    if rise < -CLEAR * error:
        verdict = "enough"
    elif rise > CLEAR * error and best["step"] < history[-1]["step"] * (1 - LAST_SHARE):
        verdict = "past"
    elif rise > CLEAR * error:
        # against noisy pixels, whose noise remains, even a small rise can be a large gain
        verdict = "little" if "validation_psnr" in best and rise < WORTHWHILE else "more"
    return Outlook(**known, rise=rise, error=error, verdict=verdict)


def score(entry: dict[str, float]) -> float:
    """Return the score that selects weights, in dB: PSNR against the truth, or else against noisy pixels."""
    if "validation_psnr" in entry:
        return entry["validation_psnr"]
    return 10 * math.log10(4 / max(entry["validation_loss"], 1e-12))


def begun(history: History) -> bool:
    """Return whether the first entry is that of a starting model."""
    return bool(history) and history[0]["step"] == 0


def slope(history: History) -> tuple[float, float] | None:
    """Return the rise of the last third of the curve in dB, and its standard error.

    Parameters
    ----------
    history : list of dict
        See the module.

    Returns
    -------
    tuple of float or None
        None with fewer than `FEWEST` validations.
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
    """Estimate of a training's duration, reported once, when its first steps have been timed.

    Parameters
    ----------
    training : Training
        Settings of the training.
    limit : int
        Maximum number of steps.
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
        """Return the sentence once, when enough steps have been timed; otherwise None."""
        passed = time.monotonic() - self.begin
        taken = step - self.first
        if self.told or taken < 2 or passed < TIMED_SECONDS:
            return None
        self.told = True
        return expected(self.training, self.limit, self.first, self.before, taken / passed)


def expected(training: Training, limit: int, step: int, seconds: float, rate: float) -> str:
    """Return a sentence on how long a training will take here.

    Parameters
    ----------
    training : Training
        Settings of the training.
    limit : int
        Maximum number of steps.
    step, seconds : int, float
        Steps taken before, and their wall time.
    rate : float
        Measured steps per second.
    """
    by_steps = (limit - step) / rate
    by_time = 60 * training.minutes - seconds if training.minutes else math.inf
    left = min(by_steps, by_time)
    steps = limit if by_steps <= by_time else step + int(by_time * rate)
    sooner = f", less if {training.patience} validations in a row are no better" if training.patience else ""
    return f"{rate:.2g} steps per second here: {clock(left)} for the steps up to {steps}{sooner}"
