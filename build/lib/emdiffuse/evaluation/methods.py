"""The one table of methods: what a restoration is compared with, in the order of every table and picture.

Conventions
-----------
* A *baseline* is a classical method, made of the input alone by `emdiffuse.evaluation.baselines`. The
  *reference* of a task is the baseline that everybody has at hand.
* The input itself is a method. Of a volume it is the nearest real slice: ``nearest`` in tables of numbers,
  ``input`` in pictures.
* Restorations of the same input by other models are methods too, called `beside` the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

GAPS = ("vemdiffuse-i", "vemdiffuse-a")
NOISE, SCALE = "emdiffuse-n", "emdiffuse-r"


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes
    ----------
    name : str
        As in files.
    label : str
        As in tables and beside pictures.
    words : str
        As in a sentence.
    baseline_of : tuple of str
        The tasks whose restorations it is a baseline of.
    reference_of : tuple of str
        Those whose reference it is.
    linear_in_slices : bool
        Whether its slices are weighted sums of real ones, so that a browser can make them.
    thick : bool
        Whether it is for thick slices alone, which integrate over what is restored.
    library : str, optional
        A library that it needs, and that is not always there.
    """

    name: str
    label: str
    words: str
    baseline_of: tuple[str, ...] = ()
    reference_of: tuple[str, ...] = ()
    linear_in_slices: bool = False
    thick: bool = False
    library: str | None = None


METHODS = {
    method.name: method
    for method in (
        Method("input", "Input", "its input", (NOISE,), (NOISE,), linear_in_slices=True),
        Method("nearest", "Nearest", "nearest-neighbour interpolation", (*GAPS, SCALE)),
        Method("gaussian", "Gaussian", "a Gaussian", (NOISE,)),
        Method("nlm", "Non-local means", "non-local means", (NOISE,)),
        Method("bm3d", "BM3D", "BM3D", (NOISE,), library="bm3d"),
        Method("linear", "Linear interpolation", "linear interpolation", GAPS, GAPS, linear_in_slices=True),
        Method(
            "cubic",
            "Cubic interpolation",
            "cubic interpolation",
            (*GAPS, SCALE),
            (SCALE,),
            linear_in_slices=True,
        ),
        Method("spline", "Average-preserving spline", "the average-preserving spline", GAPS, thick=True),
        Method("flow", "Along the optical flow", "interpolation along the optical flow", GAPS),
        Method("restored", "Restored", "the restoration"),
        Method("truth", "Ground truth", "the ground truth"),
        Method("uncertainty", "Standard deviation of the samples", "the standard deviation of the samples"),
    )
}
WITHOUT_BM3D = (
    "BM3D is not among the baselines: its library, whose licence is for non-commercial use, comes with "
    "pip install 'emdiffuse[bm3d]'."
)
_BESIDE = "restored by "


def baselines_of(task: str, thick: bool = False) -> tuple[str, ...]:
    """Return the names of a task's baselines that can be made here, the plain input first.

    Those that are for thick slices alone come only where these are `thick`.
    """
    return tuple(
        method.name
        for method in METHODS.values()
        if task in method.baseline_of
        and (thick or not method.thick)
        and (method.library is None or find_spec(method.library))
    )


def absent_baselines(task: str) -> list[str]:
    """Return a sentence on every baseline of a task that cannot be made here, and how to get it."""
    missing = (task in METHODS["bm3d"].baseline_of) and "bm3d" not in baselines_of(task)
    return [WITHOUT_BM3D] if missing else []


def reference_of(task: str) -> str:
    """Return the name of a task's reference."""
    return next(method.name for method in METHODS.values() if task in method.reference_of)


def beside(model: str) -> str:
    """Return what a restoration by another model is called."""
    return f"{_BESIDE}{model}"


def is_beside(name: str) -> bool:
    """Tell whether a method is a restoration by another model."""
    return name.startswith(_BESIDE)


def label(name: str, volume: bool = False) -> str:
    """Return what a method is called in tables and beside pictures.

    Parameters
    ----------
    name : str
        Its name; restorations by other models have names of their own.
    volume : bool
        Whether the input is one of the slices of a volume, of which the nearest is shown.
    """
    if name == "input" and volume:
        return "Input (nearest real slice)"
    return METHODS[name].label if name in METHODS else name[:1].upper() + name[1:]


def words(name: str) -> str:
    """Return what a method is called in a sentence."""
    return METHODS[name].words if name in METHODS else name
