"""The chain for images: from pairs in a microscope's folders to a denoised image that is measured and reported."""

import json

import numpy as np
import tifffile
from small_project import Project

from emdiffuse.pairs import open_pairs
from emdiffuse.volume import open_volume


def test_a_scan_is_denoised(tmp_path, medulla):
    project = Project(tmp_path / "project", medulla)
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
    tifffile.imwrite(project.folder / "scan.tif", noisy(medulla[60]))
    tifffile.imwrite(project.folder / "truth.tif", medulla[60])
    size = {"z": 50, "y": 4, "x": 4}
    project.config["datasets"] = {
        "pairs": {"pairs": {"folder": "pairs"}, "voxel_size": size},
        "scan": {"source": "scan.tif", "images": True, "voxel_size": size},
        "truth": {"source": "truth.tif", "images": True, "voxel_size": size},
    }
    model = project.config["models"].pop("gap3")
    del model["factor"]
    training = {**model["training"], "steps": 60, "learning_rate": 3e-3, "ema": 0.9}
    project.config["models"]["denoise"] = {
        **model, "task": "emdiffuse-n", "datasets": ["pairs"], "training": training,
    }  # fmt: skip
    item = {**project.config["restorations"][0], "dataset": "scan", "model": "denoise", "truth": "truth"}
    project.config["restorations"] = [item]
    project.run()

    fields = open_pairs(project.folder / "results/registered/pairs.ome.zarr").fields
    assert ["excluded" in field for field in fields] == [False, False, True]
    restored = open_volume(project.folder / "results/restored/scan/denoise/restored.ome.zarr")
    assert restored.array.shape == (1, *medulla.shape[1:]) and restored.voxel_size == (50, 4, 4)
    found = json.loads((project.folder / "results/evaluation/scan/denoise.json").read_text())
    assert list(found["methods"]) == ["input", "gaussian", "restored"]
    assert found["beats"]["psnr"] and found["gain"]["psnr"]["mean"] > 1
    report = (project.folder / "results/report.html").read_text()
    assert "beats its input in both" in report and "2 of 3 pairs are aligned" in report
    assert project.pending() == set()
