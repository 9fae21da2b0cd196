"""Check that weights are finite numbers, from their file, without loading a network.

Conventions
-----------
* A single NaN or infinite weight makes the whole restored volume so, and, rounded to integers, black. Weights
  must have a floating-point type.
* A safetensors file consists of 8 bytes with the length of the header, the header (JSON: type, shape and
  offset of every tensor), and the tensors. IEEE 754 numbers whose exponent bits are all set are not finite.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from emdiffuse.runtime.errors import ModelError

EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
"""For each type, the integer type of its bits, and the mask of the exponent."""
LARGEST_HEADER = 100_000_000


def require_numbers(path: Path) -> None:
    """Refuse weights that are not finite numbers of a supported type.

    Parameters
    ----------
    path : Path
        A safetensors file.

    Raises
    ------
    ModelError
        If so, or if the file cannot be read; names the weight.
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
        raise ModelError(f"{path} is not a complete safetensors file", path) from error


def _require_finite(path: Path, name: str, dtype: str, content: bytes) -> None:
    if dtype not in EXPONENTS:
        raise not_numbers(path, name, f"of type {dtype}")
    integer, exponent = EXPONENTS[dtype]
    bits = np.frombuffer(content, integer)
    if wrong := int(np.count_nonzero(bits & exponent == exponent)):
        raise not_numbers(path, name, f"NaN or infinite in {wrong} of {len(bits)} places")


def not_numbers(path: Path, name: str, what: str) -> ModelError:
    """Return the error for a weight."""
    return ModelError(
        f"{path}: the weight {name} is {what}, which would destroy every restored voxel; use an "
        "earlier copy of the model, or train it again",
        path,
    )
