"""The entries of a configuration, and their relations: ground truth, lineage, voxel size.

`emdiffuse.config.references` checks that they are consistent.
"""

from __future__ import annotations

from pydantic import Field

from emdiffuse.config.datasets import Dataset, Name
from emdiffuse.config.models import Model
from emdiffuse.config.restorations import Restoration
from emdiffuse.config.settings import Section
from emdiffuse.config.tasks import TASKS


class Entries(Section):
    """All sections, by name, and queries that need more than one of them."""

    datasets: dict[Name, Dataset] = Field(default_factory=dict, description="The data, by name.")
    sheet: str | None = Field(
        None,
        description="A tab-separated table of more datasets: name, source and other keys of a dataset. A "
        'restoration with the dataset "*" stands for one per row.',
    )
    models: dict[Name, Model] = Field(min_length=1, description="The models, by name.")
    restorations: tuple[Restoration, ...] = Field(
        (), description="Which model restores which dataset; without it, models are only trained."
    )
    lpips: str | None = Field(
        None,
        description="Also measure LPIPS: path of torchvision's AlexNet weights, which are never "
        "downloaded; needs the extra `lpips`.",
    )
    title: str = Field(
        "emdiffuse",
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="Title of the report, one line.",
    )

    def learns_from_noisy(self, model: str) -> bool:
        """Return whether a model learns from noisy images alone, as some of its data have no ground truth.

        Pairs with ground truth among its data then only evaluate the model.
        """
        own = self.models[model]
        return own.task == "emdiffuse-n" and not all(
            self.datasets[name].holds_clean_images for name in own.datasets
        )

    def calibrated_on(self, item: Restoration) -> Restoration | None:
        """Return the restoration that `item` is calibrated on, if any."""
        name = item.calibration and item.calibration.dataset
        found = (o for o in self.restorations if (o.dataset, o.model) == (name, item.model))
        return next(found, None)

    def beside(self, item: Restoration) -> list[Restoration]:
        """Return the other restorations of the same dataset with the same ground truth."""
        truth = self.truth(item)
        return [
            other
            for other in self.restorations
            if truth and other is not item and (other.dataset, self.truth(other)) == (item.dataset, truth)
        ]

    def baselines_task(self, item: Restoration) -> str:
        """Return the task that sets a restoration's baselines; all gap-filling tasks share theirs."""
        task = self.models[item.model].task
        return "vemdiffuse-i" if TASKS[task].volumetric else task

    def baselines(self, item: Restoration) -> str:
        """Return the name of a restoration's baselines, unique within its dataset."""
        kind = "gaps" if TASKS[self.models[item.model].task].volumetric else self.baselines_task(item)
        between = f"-between-{item.real_slices}" if item.real_slices else ""
        return f"{kind}-of-{self.truth(item)}{between}"

    def lineage(self, model: str) -> list[str]:
        """Return a model, the model it starts from, and so on to the first."""
        found = [model]
        while (name := self.models[found[-1]].training.init_from) in self.models:
            assert name is not None
            found.append(name)
        return found

    def origin(self, dataset: str) -> str:
        """Return the raw dataset that a dataset derives from (itself if it is raw)."""
        derived = self.datasets[dataset].derived
        return derived.dataset if derived else dataset

    def holds_images(self, dataset: str) -> bool:
        """Return whether a dataset contains separate images, rather than the slices of a volume."""
        own = self.datasets[dataset]
        return own.images or (own.keep_every is not None and self.datasets[own.keep_every.dataset].images)

    def truth(self, item: Restoration) -> str | None:
        """Return the dataset that is the ground truth of a restoration, if any."""
        own, gaps = self.datasets[item.dataset], TASKS[self.models[item.model].task].volumetric
        complete = own.keep_every if gaps else own.degrade if own.degrade and own.degrade.every == 1 else None
        return item.truth or (complete.dataset if complete else None)

    def voxel_size(self, dataset: str) -> tuple[float, float, float] | None:
        """Return the voxel size (z, y, x) of a dataset in nanometers, or None if only its source states it.

        For pairs it is that of the clean images.
        """
        own, size = self.datasets[dataset], self.datasets[self.origin(dataset)].voxel_size
        if size is None:
            return None
        z, y, x = size.nanometers
        along = own.keep_every.factor if own.keep_every else 1
        lateral = own.degrade.bin if own.degrade and own.images else 1
        return (z * along, y * lateral, x * lateral)
