"""A network in the published format, with its own process, beside a model trained by the workflow."""

import json

import pytest
import torch

from emdiffuse.models.networks.build import UNet
from emdiffuse.stores.volume import open_volume


@pytest.fixture
def beside(project):
    """The finished project, with a checkpoint in the published format (random weights) as another model."""
    torch.manual_seed(0)
    state = {f"denoise_fn.{name}": values for name, values in UNet(3, slice_index=True).state_dict().items()}
    torch.save(state, project.folder / "20_Network_ema.pth")
    project.config["models"]["published"] = {"task": "vemdiffuse-i", "weights": "20_Network_ema.pth"}
    tiling = {"tile": 96, "halo": 8, "blend": 8, "block": [5, 1, 1]}
    project.config["restorations"].append(
        {"dataset": "-5deg", "model": "published", "sampler": {"name": "ddpm", "steps": 2}, "tiling": tiling}
    )
    return project


def test_a_published_checkpoint_is_a_row_beside_the_others(beside):
    jobs = beside.pending()
    assert {"import_weights published", "restore -5deg published", "evaluate -5deg published"} <= jobs
    assert not any(job.startswith(("train", "patches", "baselines")) or "gap v1.2" in job for job in jobs), jobs
    beside.run()
    results = beside.folder / "results"
    store = results / "restored/-5deg/published/restored.ome.zarr"
    assert open_volume(store).facts.estimator == "one sample of 2 network evaluations (ddpm)"
    ours, theirs = (
        json.loads((results / f"evaluation/-5deg/{model}.json").read_text()) for model in ("gap v1.2", "published")
    )
    assert list(ours["methods"]) == ["nearest", "linear", "cubic", "flow", "restored"]
    assert ours["ground"] == theirs["ground"], "measured on the same voxels"
    assert ours["methods"]["flow"] == theirs["methods"]["flow"]
    text = (results / "report.html").read_text()
    said = "Restored by published: another restoration of the same data"
    assert f"{said} (one sample of 2 network evaluations (ddpm))" in text
    assert "whose weights were read from 20_Network_ema.pth" in text
    assert beside.pending() == set()
