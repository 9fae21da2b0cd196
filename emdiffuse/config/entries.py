"""The entries of a configuration, and what they say of each other: truth, lineage, voxel size.

Whether they agree is checked in `emdiffuse.config.references`.
"""

from __future__ import annotations

from pydantic import Field

from emdiffuse.config.datasets import Dataset, Name
from emdiffuse.config.models import Model
from emdiffuse.config.restorations import Restoration
from emdiffuse.config.settings import Section
from emdiffuse.config.tasks import TASKS


class Entries(Section):
    """All sections, by name, and the questions that need more than one of them."""

    datasets: dict[Name, Dataset] = Field(default_factory=dict, description="The data, by name.")
    sheet: str | None = Field(
        None,
        description="A table of more datasets, tab-separated: name, source and other keys of a dataset. A "
        'restoration whose dataset is "*" is one of every row.',
    )
    models: dict[Name, Model] = Field(min_length=1, description="The models, by name.")
    restorations: tuple[Restoration, ...] = Field(
        (), description="What is restored, by which model; without it models are only trained."
    )
    lpips: str | None = Field(
        None,
        description="Also measure LPIPS: the file with torchvision's weights of AlexNet, which is never "
        "downloaded; needs the extra `lpips`.",
    )
    title: str = Field(
        "emdiffuse",
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="Title of the report, one line.",
    )

    def learns_from_noisy(self, model: str) -> bool:
        """Tell whether a model learns from noisy images alone, since some of its data have no truth.

        Pairs with a truth beside those are measured on, and not learned from.
        """
        own = self.models[model]
        return own.task == "emdiffuse-n" and not all(
            self.datasets[name].holds_clean_images for name in own.datasets
        )

    def calibrated_on(self, item: Restoration) -> Restoration | None:
        """Return the restoration that another one is calibrated on, if there is one."""
        name = item.calibration and item.calibration.dataset
        found = (o for o in self.restorations if (o.dataset, o.model) == (name, item.model))
        return next(found, None)

    def beside(self, item: Restoration) -> list[Restoration]:
        """Return the other restorations of the same dataset that are compared with the same truth."""
        truth = self.truth(item)
        return [
            other
            for other in self.restorations
            if truth and other is not item and (other.dataset, self.truth(other)) == (item.dataset, truth)
        ]

    def baselines_task(self, item: Restoration) -> str:
        """Return the task whose baselines a restoration has; gaps have the same, whatever fills them."""
        task = self.models[item.model].task
        return "vemdiffuse-i" if TASKS[task].volumetric else task

    def baselines(self, item: Restoration) -> str:
        """Return what names the baselines of a restoration, among those of its dataset."""
        kind = "gaps" if TASKS[self.models[item.model].task].volumetric else self.baselines_task(item)
        between = f"-between-{item.real_slices}" if item.real_slices else ""
        return f"{kind}-of-{self.truth(item)}{between}"

    def lineage(self, model: str) -> list[str]:
        """Return a model, the model it starts from, and so on."""
        found = [model]
        while (name := self.models[found[-1]].training.init_from) in self.models:
            assert name is not None
            found.append(name)
        return found

    def origin(self, dataset: str) -> str:
        """Return the raw dataset that a dataset comes from (itself, when it is raw)."""
        derived = self.datasets[dataset].derived
        return derived.dataset if derived else dataset

    def holds_images(self, dataset: str) -> bool:
        """Tell whether a dataset holds separate images, rather than the slices of a volume."""
        own = self.datasets[dataset]
        return own.images or (own.keep_every is not None and self.datasets[own.keep_every.dataset].images)

    def truth(self, item: Restoration) -> str | None:
        """Return the dataset that a restoration is compared with, if there is one."""
        own, gaps = self.datasets[item.dataset], TASKS[self.models[item.model].task].volumetric
        complete = own.keep_every if gaps else own.degrade if own.degrade and own.degrade.every == 1 else None
        return item.truth or (complete.dataset if complete else None)

    def voxel_size(self, dataset: str) -> tuple[float, float, float] | None:
        """Return the voxel size (z, y, x) of a dataset in nanometers, None where its source is to tell it.

        Of pairs it is that of the clean images.
        """
        own, size = self.datasets[dataset], self.datasets[self.origin(dataset)].voxel_size
        if size is None:
            return None
        z, y, x = size.nanometers
        along = own.keep_every.factor if own.keep_every else 1
        lateral = own.degrade.bin if own.degrade and own.images else 1
        return (z * along, y * lateral, x * lateral)
