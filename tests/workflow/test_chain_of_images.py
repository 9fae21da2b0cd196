"""The pipeline for images: from pairs in a microscope's folders to an evaluated and reported denoised image."""

import json

import numpy as np
import pytest
import tifffile
from small_project import Project

from emdiffuse.evaluation.methods import baselines_of
from emdiffuse.stores.pairs import open_pairs
from emdiffuse.stores.volume import open_volume


def test_a_scan_is_denoised(tmp_path, medulla, commands):
    project = Project(tmp_path / "project", medulla, commands)
    noise = np.random.default_rng(0)

    def noisy(image):
        return np.clip(np.rint(image + noise.normal(0, 25, image.shape)), 0, 255).astype(np.uint8)

    for cell, z in ((1, 0), (2, 20)):
        folder = project.folder / f"pairs/cell_{cell}/noise_level_1"
        folder.mkdir(parents=True)
        tifffile.imwrite(folder / "wf_image1.tif", noisy(medulla[z]))
        tifffile.imwrite(folder / "gt_image1.tif", medulla[z])
    misaligned = project.folder / "pairs/cell_2/noise_level_2"
    misaligned.mkdir()
    tifffile.imwrite(misaligned / "wf_image1.tif", noisy(np.roll(medulla[40], 6, 0)))
    tifffile.imwrite(misaligned / "gt_image1.tif", medulla[40])
    for name, z in (("scan", 60), ("held", 30)):
        tifffile.imwrite(project.folder / f"{name}.tif", noisy(medulla[z]))
        tifffile.imwrite(project.folder / f"{name}_truth.tif", medulla[z])
    size = {"z": 50, "y": 4, "x": 4}
    project.config["datasets"] = {
        "pairs": {"pairs": {"folder": "pairs"}, "voxel_size": size},
        **{
            name: {"source": f"{name}.tif", "images": True, "voxel_size": size}
            for name in ("scan", "scan_truth", "held", "held_truth")
        },
    }
    model = project.config["models"].pop("gap v1.2")
    del model["factor"]
    training = {**model["training"], "steps": 60, "learning_rate": 3e-3, "ema": 0.9}
    project.config["models"]["denoise"] = {
        **model, "task": "emdiffuse-n", "datasets": ["pairs"], "training": training,
    }  # fmt: skip
    item = {**project.config["restorations"][0], "dataset": "scan", "model": "denoise", "truth": "scan_truth"}
    held = {**item, "dataset": "held", "truth": "held_truth"}
    item |= {"calibration": {"dataset": "held", "block": 32}}
    project.config["restorations"] = [item, held]
    project.run()

    fields = open_pairs(project.folder / "results/registered/pairs.ome.zarr").fields
    assert [field.quality["changed"] for field in fields] == [False, False, True]
    assert fields[2].quality["displacement"]["median"] == pytest.approx(6, abs=0.3)
    restored = open_volume(project.folder / "results/restored/scan/denoise/restored.ome.zarr")
    assert restored.array.shape == (1, *medulla.shape[1:]) and restored.voxel_size == (50, 4, 4)
    found = json.loads((project.folder / "results/evaluation/scan/denoise.json").read_text())
    assert list(found["methods"]) == [*baselines_of("emdiffuse-n"), "restored"]
    assert found["beats"]["psnr"] and found["gain"]["psnr"]["mean"] > 1
    calibration = json.loads((project.folder / "results/calibration/scan/denoise.json").read_text())
    assert (calibration["dataset"], calibration["units"]) == ("held", 36)
    assert found["trust"]["coverage"][0]["mean"] > 0.85
    path = project.folder / "results/restored/scan/denoise/restored.ome.zarr"
    lower, values, upper = (open_volume(path / part).array[:, :, :] for part in ("lower", "restored", "upper"))
    assert (lower <= values).all() and (values <= upper).all() and (lower < upper).mean() > 0.99
    report = (project.folder / "results/report.html").read_text()
    # a single image has no interval, without which the report draws no conclusion
    assert found["gain"]["psnr"]["low"] is None and "Too little data to tell" in report
    assert "3 of 3 pairs are aligned, 1 of them" in report
    assert "were calibrated on held" in report
    assert project.pending() == set()


def test_scans_are_denoised_by_a_model_that_saw_no_clean_image(tmp_path, medulla, commands):
    """From noisy images alone and from a noisy volume; and intervals calibrated by a second scan."""
    project = Project(tmp_path / "project", medulla, commands)
    noise = np.random.default_rng(0)

    def noisy(images):
        return np.clip(np.rint(images + noise.normal(0, 15, images.shape)), 0, 255).astype(np.uint8)

    scans, held = medulla[:40:10, :96, :96], medulla[5:60:10, :96, 88:184]
    for name, images in (
        ("scans", noisy(scans)), ("truth", scans), ("held", noisy(held)), ("again", noisy(held)),
        ("volume", noisy(medulla[:6, :64, :64])),
    ):  # fmt: skip
        tifffile.imwrite(project.folder / f"{name}.tif", images, photometric="minisblack")
    (project.folder / "pairs").mkdir()
    for number, image in enumerate(medulla[2:40:20, :96, :96]):
        tifffile.imwrite(project.folder / f"pairs/noisy_{number}.tif", noisy(image))
        tifffile.imwrite(project.folder / f"pairs/clean_{number}.tif", image)
    size = {"z": 20, "y": 4, "x": 4}
    project.config["datasets"] = {
        name: {"source": f"{name}.tif", "images": name != "volume", "voxel_size": size}
        for name in ("scans", "truth", "held", "again", "volume")
    }
    project.config["datasets"]["pairs"] = {"pairs": {"folder": "pairs"}, "voxel_size": size}
    model = project.config["models"].pop("gap v1.2")
    del model["factor"]
    training = {**model["training"], "steps": 40, "learning_rate": 3e-3, "ema": 0.9}
    model |= {"task": "emdiffuse-n", "training": training}
    context = {"patches": {**model["patches"], "context": 1}, "training": {**training, "steps": 10}}
    project.config["models"] = {
        "alone": {**model, "datasets": ["scans"]},
        "volumes": {**model, **context, "datasets": ["volume"]},
        "taught": {**model, "datasets": ["pairs"], "training": {**training, "steps": 20}},
    }
    tiling = project.config["restorations"][0]["tiling"]
    sampled = {"model": "taught", "sampler": {"steps": 2, "samples": 2}, "tiling": tiling}
    project.config["restorations"] = [
        {"dataset": "scans", "model": "alone", "truth": "truth", "tiling": tiling},
        {"dataset": "volume", "model": "volumes", "tiling": tiling},
        {"dataset": "held", **sampled, "second_scan": "again"},
        {"dataset": "volume", **sampled, "calibration": {"dataset": "held", "block": 32}},
    ]
    project.run()

    found = json.loads((project.folder / "results/evaluation/scans/alone.json").read_text())
    assert found["gain"]["psnr"]["mean"] > 2  # over the input
    described = json.loads((project.folder / "experiments/alone/best/model.json").read_text())
    assert described["learned_from"] == "hidden pixels" and described["network"]["blind_spot"] == [0, 0]
    restored = open_volume(project.folder / "results/restored/volume/volumes/restored.ome.zarr")
    assert restored.array.shape == (6, 64, 64)
    made = json.loads((project.folder / "results/calibration/volume/taught.json").read_text())
    assert made["truth"] == "again" and made["noise"] == pytest.approx(15, rel=0.1)
    report = (project.folder / "results/report.html").read_text()
    for said in (
        "single pixels are hidden (Noise2Void), because the",
        "learned from noisy images alone, so there are no samples",
        "a second noisy scan (again) stood in for it",
    ):
        assert said in report, said
    assert project.pending() == set()


def test_a_noisy_volume_is_denoised_in_context_and_filled_by_a_model_that_is_adapted_to_it(
    tmp_path, medulla, small_model
):
    """`patches.context` in `real_slices`, and the equivalent of `emdiffuse adapt` in a configuration."""
    project = Project(tmp_path / "project", medulla)
    noise = np.random.default_rng(0).normal(0, 15, medulla[:25:3, :100, :64].shape)
    noisy = np.clip(np.rint(medulla[:25:3, :100, :64] + noise), 0, 255).astype(np.uint8)
    tifffile.imwrite(project.folder / "noisy.tif", noisy, photometric="minisblack")
    project.config["datasets"] = {"noisy": {"source": "noisy.tif", "voxel_size": {"z": 30, "y": 10, "x": 10}}}
    small = project.config["models"].pop("gap v1.2")
    network = {"channels": 8, "multipliers": [1, 2], "blocks": 1}
    training = {**small["training"], "steps": 6, "validate_every": 3}
    project.config["models"] = {
        "denoise": {
            "task": "emdiffuse-n", "datasets": ["noisy"], "network": network, "training": training,
            "patches": {"size": 32, "validation": 0.2, "context": 1},
        },
        "mine": {
            "task": "vemdiffuse-a", "datasets": ["noisy"], "factor": 3, "network": network,
            "patches": {"size": 32, "validation": 0.25, "left_out_slices": True},
            "training": {**training, "init_from": str(small_model)},
        },
    }  # fmt: skip
    tiling = project.config["restorations"][0]["tiling"]
    slices = {"dataset": "noisy", "model": "denoise", "sampler": {"samples": 1}, "tiling": tiling}
    project.config["restorations"] = [slices, {**slices, "model": "mine", "real_slices": "denoise"}]
    project.run()

    results = project.folder / "results/restored/noisy"
    denoised, filled = (
        open_volume(results / f"{model}/restored.ome.zarr").array[:, :, :] for model in ("denoise", "mine")
    )
    assert filled.shape == (25, 100, 64) and (denoised != noisy).mean() > 0.5
    np.testing.assert_array_equal(filled[::3], denoised)
    described = json.loads((project.folder / "experiments/denoise/best/model.json").read_text())
    assert described["network"]["conditions"] == 3
    found = json.loads((project.folder / "experiments/mine/best/metrics.json").read_text())
    assert [entry["step"] for entry in found["history"]] == [0, 3, 6] and found["outlook"]["gain"] >= 0
    assert "between slices denoised by denoise" in (project.folder / "results/report.html").read_text()
    assert project.pending() == set()
