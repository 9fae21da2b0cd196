"""The `report` section of the configuration."""

from __future__ import annotations

from pydantic import Field, model_validator

from emdiffuse.config.settings import Section


class Report(Section):
    """The report; nothing here changes a number."""

    title: str = Field(
        "emdiffuse",
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="Title of the report, one line.",
    )
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5), description="Percentiles of the truth shown as black and white, the same in every panel."
    )
    width: int = Field(320, ge=64, le=2000, description="Width of a panel, in pixels.")

    @model_validator(mode="after")
    def _percentiles(self) -> Report:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError("`percentiles` are two numbers from 0 to 100, the lower one first")
        return self
