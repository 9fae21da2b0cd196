"""How a raw source is read: which part of it, and how missing or special values are interpreted.

Conventions
-----------
* No key changes a value that is read, except `square_pixels`. Indices count from 0.
* The keys stand beside `source` in a dataset, and are options of `emdiffuse enhance` and `watch`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from emdiffuse.config.settings import Section

Interval = tuple[int, int]


class Crop(Section):
    """A box of a source, in its own voxels: for each axis [start, stop), stop excluded."""

    z: Interval | None = Field(None, description="Slices, such as [100, 400]; all by default.")
    y: Interval | None = Field(None, description="Rows.")
    x: Interval | None = Field(None, description="Columns.")

    @model_validator(mode="after")
    def _not_empty(self) -> Crop:
        for axis in "zyx":
            side = getattr(self, axis)
            if side is not None and not 0 <= side[0] < side[1]:
                raise ValueError(
                    f"{axis}: [{side[0]}, {side[1]}] is empty; the first number must be below the second"
                )
        return self


class Raw(Section):
    """What a headerless file does not state about itself."""

    shape: tuple[int, ...] = Field(description="Number of slices, rows and columns, or of rows and columns.")
    dtype: Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"] = Field(
        description="Data type of a pixel."
    )
    offset: int = Field(0, ge=0, description="Bytes before the first pixel.")
    byte_order: Literal["little", "big"] = Field("little", description="Byte order.")

    @field_validator("shape")
    @classmethod
    def _positive(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError("expected two or three numbers above zero: slices, rows and columns")
        return shape


class Reading(Section):
    """Which part of a source is read, and how."""

    series: int | str | None = Field(
        None, description="Which image of a file that contains several: its number (from 0) or its name."
    )
    channel: int | str | None = Field(None, description="Which channel: its number (from 0) or its name.")
    timepoint: int | None = Field(None, ge=0, description="Which time point (from 0).")
    level: int = Field(0, ge=0, description="Which level of a pyramid; 0 is the finest.")
    axes: str | None = Field(
        None,
        pattern="^[zyxcts]{2,6}$",
        description="Order of the axes as stored, slowest first, such as `xyz` or `zcyx`, if the file "
        "does not state it, or states it wrongly.",
    )
    crop: Crop | None = Field(None, description="A box of the source.")
    step: int | None = Field(
        None, ge=1, description="Step between the numbers of neighbouring slices; detected by default."
    )
    raw: Raw | None = Field(None, description="Shape and data type of a headerless file.")
    data_bar: Literal["auto"] | int = Field(
        "auto",
        description="Height in rows of the microscope's data bar at the bottom; 0: none; `auto`: detected "
        "from metadata or appearance.",
    )
    missing_chunks: Literal["refuse", "fill"] = Field(
        "refuse", description="`fill`: read missing chunks as the fill value, instead of refusing them."
    )
    nan: Literal["refuse", "mask"] = Field(
        "refuse", description="`mask`: NaN marks voxels without data, which are ignored and stay NaN."
    )

    square_pixels: bool = Field(
        False,
        description="Resample pixels that are not square to their shorter side, instead of refusing "
        "them; the pixel size is then the shorter side.",
    )

    @field_validator("data_bar")
    @classmethod
    def _rows(cls, rows: str | int) -> str | int:
        if isinstance(rows, int) and rows < 0:
            raise ValueError("the rows of a data bar must be 0 or more")
        return rows

    @property
    def reading(self) -> Reading:
        """Only these keys, of a section that has others too."""
        return Reading(**{key: getattr(self, key) for key in Reading.model_fields})
