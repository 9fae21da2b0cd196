"""The table of all methods that a restoration is compared with, in the order of tables and images.

Conventions
-----------
* A *baseline* is a classical method, computed from the input alone by `emdiffuse.evaluation.baselines`. The
  *reference* of a task is the standard baseline.
* The input itself is a method. For a volume it is the nearest real slice: ``nearest`` in tables of numbers,
  ``input`` in images.
* Restorations of the same input by other models are methods too, named by `beside`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

GAPS = ("vemdiffuse-i", "vemdiffuse-a")
NOISE, SCALE = "emdiffuse-n", "emdiffuse-r"


@dataclass(frozen=True)
class Method:
    """A method that is shown and measured.

    Attributes
    ----------
    name : str
        Name in files.
    label : str
        Name in tables and below images.
    words : str
        Name in a sentence.
    baseline_of : tuple of str
        Tasks that it is a baseline of.
    reference_of : tuple of str
        Tasks that it is the reference of.
    linear_in_slices : bool
        Whether its slices are weighted sums of real ones, which a browser can compute.
    thick : bool
        Whether it is only for thick slices.
    library : str, optional
        Optional library that it needs.
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
    "BM3D is not among the baselines: its library, licensed for non-commercial use, is installed by "
    "pip install 'emdiffuse[bm3d]'."
)
_BESIDE = "restored by "


def baselines_of(task: str, thick: bool = False) -> tuple[str, ...]:
    """Return the names of a task's baselines that can be computed here, the plain input first.

    Baselines for thick slices are included only if the slices are `thick`.
    """
    return tuple(
        method.name
        for method in METHODS.values()
        if task in method.baseline_of
        and (thick or not method.thick)
        and (method.library is None or find_spec(method.library))
    )


def absent_baselines(task: str) -> list[str]:
    """Return a sentence on each baseline of a task that is not available here, and how to get it."""
    missing = (task in METHODS["bm3d"].baseline_of) and "bm3d" not in baselines_of(task)
    return [WITHOUT_BM3D] if missing else []


def reference_of(task: str) -> str:
    """Return the name of a task's reference."""
    return next(method.name for method in METHODS.values() if task in method.reference_of)


def beside(model: str) -> str:
    """Return the name of a restoration by another model."""
    return f"{_BESIDE}{model}"


def is_beside(name: str) -> bool:
    """Return whether a method is a restoration by another model."""
    return name.startswith(_BESIDE)


def label(name: str, volume: bool = False) -> str:
    """Return the name of a method in tables and below images.

    Parameters
    ----------
    name : str
        Name in files.
    volume : bool
        Whether the input is a volume, whose nearest slice is shown.
    """
    if name == "input" and volume:
        return "Input (nearest real slice)"
    return METHODS[name].label if name in METHODS else name[:1].upper() + name[1:]


def words(name: str) -> str:
    """Return the name of a method in a sentence."""
    return METHODS[name].words if name in METHODS else name
