"""Whether weights are numbers: told from their file, without loading a network.

Conventions
-----------
* One weight that is NaN or infinite is enough to make all of a restored volume so, and rounded to integers
  it would be black. Weights of no floating-point type are none.
* A safetensors file is 8 bytes with the length of its header, the header (JSON: type, shape and place of
  every tensor), and the tensors. Numbers of IEEE 754 whose exponent bits are all set are not finite.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from emdiffuse.runtime.errors import ModelError

EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
"""Of each type the integers that its numbers are read as, and the bits of their exponents."""
LARGEST_HEADER = 100_000_000


def require_numbers(path: Path) -> None:
    """Refuse weights that are not finite numbers of a type that networks have.

    Parameters
    ----------
    path : Path
        A safetensors file.

    Raises
    ------
    ModelError
        If one is not, or the file cannot be read; names the weight.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError(length)
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                content = file.read(end - begin)
                if len(content) != end - begin:
                    raise ValueError(name)
                _require_finite(path, name, entry["dtype"], content)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}", path) from error
    except ModelError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a whole safetensors file", path) from error


def _require_finite(path: Path, name: str, dtype: str, content: bytes) -> None:
    if dtype not in EXPONENTS:
        raise not_numbers(path, name, f"of type {dtype}")
    integer, exponent = EXPONENTS[dtype]
    bits = np.frombuffer(content, integer)
    if wrong := int(np.count_nonzero(bits & exponent == exponent)):
        raise not_numbers(path, name, f"NaN or infinite in {wrong} of {len(bits)} places")


def not_numbers(path: Path, name: str, what: str) -> ModelError:
    """Return the refusal of a weight."""
    return ModelError(
        f"{path}: the weight {name} is {what}, and every voxel that it restores would be lost; take an "
        "earlier copy of the model, or train it again",
        path,
    )
