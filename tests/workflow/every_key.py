"""A small use of every key of the configuration, and another value.

Each key has a separate dataset, model or restoration, named after it, so that one run changes all keys.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torchvision.models import alexnet

from emdiffuse.config import Config
from emdiffuse.models.description import Description
from emdiffuse.models.networks.native import NativeNetwork
from emdiffuse.models.networks.weights import save_model
from emdiffuse.registration.flow_weights import SHIPPED

Values = dict[str, Any]


def keys_of(section: type[BaseModel], before: str = "") -> Iterator[str]:
    """Yield the keys of a section and of all in it, such as ``models.training.steps``."""
    for name, field in section.model_fields.items():
        inner = list(_sections(field.annotation))
        if not inner:
            yield f"{before}{name}"
        for own in inner:
            yield from keys_of(own, f"{before}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _sections(part)


KEYS = list(keys_of(Config))

SIZE = {"z": 30, "y": 10, "x": 10}
GAPS: Values = {"source": "thin.tif", "voxel_size": SIZE}
SCANS: Values = {"source": "thin.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}}
THINNED: Values = {"keep_every": {"dataset": "test", "factor": 3}}
DEGRADED: Values = {
    "images": True,
    "degrade": {"dataset": "test", "every": 4, "blur": 0.5, "noise": {"gaussian": 0.05}, "seed": 1},
}
PAIRS: Values = {"pairs": {"folder": "pairs"}, "voxel_size": {"z": 10, "y": 10, "x": 10}}
BARE: Values = {
    **GAPS,
    "source": "bare.raw",
    "raw": {"shape": [5, 32, 32], "dtype": "uint16", "offset": 4},
}

DATASETS: dict[str, tuple[Values, Any]] = {
    "series": ({**GAPS, "source": "series.ome.tif", "series": 0}, 1),
    "channel": ({**GAPS, "source": "channels.ome.tif", "channel": 0}, 1),
    "timepoint": ({**GAPS, "source": "times.ome.tif", "timepoint": 0}, 1),
    "level": ({**GAPS, "source": "levels.zarr", "voxel_size": {**SIZE, "override": True}}, 1),
    "axes": (GAPS, "zxy"),
    "crop.z": (GAPS, [1, 4]),
    "crop.y": (GAPS, [0, 24]),
    "crop.x": (GAPS, [8, 32]),
    "step": ({**GAPS, "source": "slices"}, 2),
    "raw.shape": (BARE, [5, 16, 64]),
    "raw.dtype": (BARE, "int16"),
    "raw.offset": (BARE, 2052),
    "raw.byte_order": (BARE, "big"),
    "data_bar": (GAPS, 4),
    "missing_chunks": ({**GAPS, "source": "levels.zarr"}, "fill"),
    "nan": ({**GAPS, "source": "float.tif"}, "mask"),
    "source": (GAPS, "other.tif"),
    "images": (SCANS, True),
    "voxel_size.z": (GAPS, 40),
    "voxel_size.y": (GAPS, 10.005),
    "voxel_size.x": (GAPS, 10.005),
    "voxel_size.unit": (GAPS, "angstrom"),
    "voxel_size.override": (GAPS, True),
    "invert": (GAPS, True),
    "repair": (GAPS, True),
    "slice_thickness": (GAPS, 0.5),
    "square_pixels": (GAPS, True),
    "keep_every.dataset": (THINNED, "test2"),
    "keep_every.factor": (THINNED, 4),
    "keep_every.thickness": (THINNED, 1.0),
    "pairs.folder": (PAIRS, "pairs2"),
    "pairs.pattern": (PAIRS, "{role}_{field}1.tif"),
    "pairs.scale": (PAIRS, 1),
    "pairs.keep_going": (PAIRS, True),
    "pairs.scans": (PAIRS, ["noisy", "clean"]),
    "degrade.dataset": (DEGRADED, "test2"),
    "degrade.every": (DEGRADED, 3),
    "degrade.blur": (DEGRADED, 1.0),
    "degrade.bin": (DEGRADED, 2),
    "degrade.noise.electrons": (DEGRADED, 20.0),
    "degrade.noise.gaussian": (DEGRADED, [0.05, 0.1]),
    "degrade.noise.correlation": (DEGRADED, 0.5),
    "degrade.noise.lines": (DEGRADED, 0.1),
    "degrade.seed": (DEGRADED, 2),
    "alignment.method": (PAIRS, "check"),
    "alignment.tolerance": ({**PAIRS, "alignment": {"method": "check"}}, 1.5),
    "alignment.weights": (PAIRS, "flow.safetensors"),
    "alignment.least_correlation": (PAIRS, 0.1),
}
ALSO = {
    "raw.offset": {"raw.shape": [4, 32, 32]},  # a file has the size that is told of it
    "task": {"datasets": ["coarse"]},  # one of the two learns from isotropic volumes, the other from others
}
"""Changes required along with a key to keep the configuration valid."""
RESTORED = {"source", "voxel_size.z", "invert", "slice_thickness"}
"""Keys of datasets that are tested to the end of a restoration; the others only to the registered data, which
their hash identifies."""
LEARNED = {key for key, (before, _) in DATASETS.items() if "pairs" in before}
"""Datasets that are not restored, but used for training a model."""

NETWORK = {"channels": 8, "multipliers": [1], "blocks": 1}
UNET = {"architecture": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1}
MODEL: Values = {
    "task": "vemdiffuse-i",
    "datasets": ["iso"],
    "factor": 3,
    "patches": {"size": 16, "validation": 0.4, "limit": 8},
    "network": NETWORK,
    "training": {"steps": 2, "batch": 2, "warmup": 1, "validate_every": 1},
}
OF_IMAGES: Values = {**{k: v for k, v in MODEL.items() if k != "factor"}, "task": "emdiffuse-n"}
OF_PLANES: Values = {**MODEL, "task": "vemdiffuse-a", "datasets": ["coarse"]}
OF_NOISE: Values = {**OF_IMAGES, "datasets": ["iso"]}
OF_UNET: Values = {**MODEL, "network": UNET}
OF_TWO: Values = {**MODEL, "datasets": ["iso", "iso2"]}

MODELS: dict[str, tuple[Values, Any]] = {
    "task": (MODEL, "vemdiffuse-a"),
    "datasets": (MODEL, ["iso2"]),
    "weights": ({"task": "vemdiffuse-i", "weights": "given"}, "given2"),
    "factor": (MODEL, 2),
    "thickness": (MODEL, 0.5),
    "patches.size": (MODEL, 24),
    "patches.overlap": (MODEL, 0.0),
    "patches.axes": (MODEL, ["z", "y"]),
    "patches.validation": (MODEL, 0.45),
    "patches.validation_datasets": (OF_TWO, ["iso"]),
    "patches.limit": (MODEL, 6),
    "patches.context": (OF_NOISE, 1),
    "patches.left_out_slices": (OF_PLANES, True),
    "augmentation.gain": (MODEL, 0.1),
    "augmentation.inversion": (MODEL, 0.5),
    "augmentation.transposition": (MODEL, False),
    "augmentation.blur": (MODEL, 0.5),
    "augmentation.noise": (MODEL, 0.1),
    "augmentation.contrast": (MODEL, 0.1),
    "augmentation.brightness_jump": (MODEL, 0.1),
    "network.architecture": ({**MODEL, "network": {**UNET, "architecture": "native"}}, "unet"),
    "network.channels": (MODEL, 16),
    "network.multipliers": (MODEL, [1, 2]),
    "network.blocks": (MODEL, 2),
    "network.dropout": (OF_UNET, 0.5),
    "network.checkpointing": (MODEL, True),
    "training.steps": (MODEL, 3),
    "training.minutes": (MODEL, 60.0),
    "training.patience": (MODEL, 1),
    "training.batch": (MODEL, 4),
    "training.accumulate": (MODEL, 2),
    "training.learning_rate": (MODEL, 2e-3),
    "training.warmup": (MODEL, 3),
    "training.weight_decay": (MODEL, 0.5),
    "training.ema": (MODEL, 0.5),
    "training.loss": (OF_UNET, "difficulty"),
    "training.mean_share": (MODEL, 1.0),
    "training.validate_every": (MODEL, 2),
    "training.feed": (MODEL, "device"),
    "training.checkpoint_minutes": (MODEL, 1.0),
    "training.precision": (MODEL, "float32"),
    "training.init_from": (MODEL, "begun"),
    "training.seed": (MODEL, 1),
    "training.blind_spot": (OF_NOISE, [1, 1]),
}

TILING = {"tile": 32, "halo": 0, "blend": 8, "block": [1, 1, 1]}
RESTORATION: Values = {"dataset": "thin", "tiling": TILING}
SAMPLED: Values = {**RESTORATION, "sampler": {"steps": 2, "samples": 2}}
CALIBRATED: Values = {**SAMPLED, "calibration": {"dataset": "held", "alpha": 0.5, "block": 16}}

RESTORATIONS: dict[str, tuple[Values, Any]] = {
    "dataset": (RESTORATION, "thin2"),
    "model": (RESTORATION, "another"),
    "real_slices": (RESTORATION, "denoiser"),
    "sampler.name": (SAMPLED, "ddim"),
    "sampler.steps": (RESTORATION, 2),
    "sampler.samples": (SAMPLED, 3),
    "sampler.texture": (RESTORATION, 0.5),
    "sampler.sharpen": (RESTORATION, 0.5),
    "sampler.ensemble": (RESTORATION, 8),
    "sampler.seed": (SAMPLED, 1),
    "sampler.empty": (RESTORATION, "restore"),
    "sampler.consistent": ({**RESTORATION, "dataset": "thick"}, False),
    "tiling.tile": (RESTORATION, 48),
    "tiling.halo": (RESTORATION, 4),
    "tiling.blend": (RESTORATION, 10),
    "tiling.block": (RESTORATION, [2, 1, 1]),
    "truth": ({**RESTORATION, "dataset": "thin2"}, "test"),
    "second_scan": ({**RESTORATION, "dataset": "thin2", "model": "denoiser"}, "thin"),
    "calibration.dataset": (CALIBRATED, "held2"),
    "calibration.alpha": (CALIBRATED, 0.6),
    "calibration.block": (CALIBRATED, 24),
    "reliable": (SAMPLED, 0.5),
}

WHOLE: dict[str, Any] = {
    "sheet": "sheet.tsv",
    "lpips": "alexnet.pth",
    "title": "Another",
}
"""Keys at the top of the configuration."""

SHARED: Values = {
    "iso": {"source": "iso.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
    "iso2": {"source": "iso2.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
    "coarse": {"source": "iso.tif", "voxel_size": SIZE},
    "test": {"source": "test.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
    "test2": {"source": "test2.tif", "voxel_size": {"z": 10, "y": 10, "x": 10}},
    "thin": GAPS,
    "thin2": {**GAPS, "source": "kept.tif"},
    "thick": {**GAPS, "slice_thickness": 1.0},
    "held": THINNED,
    "held2": {"keep_every": {"dataset": "test2", "factor": 3}},
}


def changed(before: Values, key: str, value: Any) -> Values:
    """Return values with that of a key replaced, and those that must change with it."""
    for other, own in {key: value, **ALSO.get(key, {})}.items():
        before = _put(before, other, own)
    return before


def named(key: str) -> str:
    """Return the name of the dataset or model of a key."""
    return key.replace(".", "-").replace("_", "-")


def _put(values: Values, key: str, value: Any) -> Values:
    """Return values with that of a key replaced, adding missing sections."""
    first, _, rest = key.partition(".")
    inner = _put(values.get(first) or {}, rest, value) if rest else value
    return {**values, first: inner}


def learning(after: bool) -> Values:
    """Return a configuration that trains a model for each key of `models`, and on each dataset of pairs."""
    models: Values = {"begun": MODEL}
    datasets = {name: SHARED[name] for name in ("iso", "iso2", "coarse")}
    for key, (before, value) in MODELS.items():
        models[named(key)] = changed(before, key, value) if after else before
    for key in sorted(LEARNED):
        before, value = DATASETS[key]
        datasets[named(key)] = changed(before, key, value) if after else before
        models[f"on-{named(key)}"] = {**OF_IMAGES, "datasets": [named(key)]}
    return copy.deepcopy({"datasets": datasets, "models": models})


def restoring(after: bool) -> Values:
    """Return a configuration with a restoration for each other key of `datasets` and of `restorations`."""
    given = {"task": "vemdiffuse-i", "weights": "given"}
    denoiser = {"task": "emdiffuse-n", "weights": "denoiser"}
    models: Values = {"given": given, "another": given, "denoiser": denoiser}
    datasets, restorations = dict(SHARED), [{**RESTORATION, "model": "denoiser"}]
    for key in sorted(DATASETS.keys() - LEARNED):
        before, value = DATASETS[key]
        datasets[named(key)] = changed(before, key, value) if after else before
        if key in RESTORED:
            restorations.append({"dataset": named(key), "model": "given", "tiling": TILING})
    for key, (before, value) in RESTORATIONS.items():
        models[f"by-{named(key)}"] = given
        own = {"model": f"by-{named(key)}", **before}
        restorations.append(changed(own, key, value) if after else own)
        if "calibration" in before:
            restorations += [{**SAMPLED, "model": own["model"], "dataset": name} for name in ("held", "held2")]
    restorations.sort(key=lambda item: (item["dataset"], item["model"]))
    return copy.deepcopy({"datasets": datasets, "models": models, "restorations": restorations})


def reporting(after: bool) -> Values:
    """Return a configuration that writes a report, with the keys at its top."""
    given = {"task": "vemdiffuse-i", "weights": "given"}
    config: Values = {
        "datasets": {"test": SHARED["test"], "held": THINNED},
        "models": {"given": given},
        "restorations": [{**RESTORATION, "dataset": "held", "model": "given"}],
    }
    if after:
        config["restorations"].append({"dataset": "*", "model": "given", "tiling": TILING})
        for key, value in WHOLE.items():
            config = changed(config, key, value)
    return copy.deepcopy(config)


def targets(config: Values) -> list[str]:
    """Return the targets of a run of a configuration: all but the report."""
    whole = Config.model_validate(config)
    made = [f"results/registered/{name}.ome.zarr/zarr.json" for name in whole.datasets]
    for item in whole.restorations:
        made.append(f"results/restored/{item.dataset}/{item.model}/restored.ome.zarr/zarr.json")
        made += [f"results/evaluation/{item.dataset}/{item.model}.json"] if whole.truth(item) else []
    return made + [f"experiments/{name}/best/model.json" for name in whole.models]


def write_raw(folder: Path, medulla: NDArray[np.uint8]) -> None:
    """Write the raw files, models and weights named in the tables."""
    thin = medulla[0:13:3, 60:92, 60:92]
    stacks = {
        "iso": medulla[:30, :32, :32],
        "iso2": medulla[30:60, :32, :32],
        "test": medulla[:13, 100:132, 100:132],
        "test2": medulla[20:33, 100:132, 100:132],
        "kept": medulla[:13:3, 100:132, 100:132],
        "thin": thin,
        "other": thin[:, ::-1],
        "float": thin.astype(np.float32),
    }
    for name, values in stacks.items():
        tifffile.imwrite(folder / f"{name}.tif", np.ascontiguousarray(values))
    both = np.stack([thin, thin[:, ::-1]])
    with tifffile.TiffWriter(folder / "series.ome.tif", ome=True) as tif:
        for values in both:
            tif.write(values, metadata={"axes": "ZYX"})
    tifffile.imwrite(folder / "channels.ome.tif", both, metadata={"axes": "CZYX"})
    tifffile.imwrite(folder / "times.ome.tif", both, metadata={"axes": "TZYX"})
    (folder / "slices").mkdir()
    for number, values in zip((0, 2, 4, 6, 8), thin, strict=True):
        tifffile.imwrite(folder / "slices" / f"{number:02d}.tif", values)
    (folder / "bare.raw").write_bytes(bytes(4) + thin.astype("<u2").tobytes())
    _write_levels(folder / "levels.zarr", thin)
    for number, name in enumerate(("pairs", "pairs2")):
        (folder / name).mkdir()
        for field in (1, 2, 11, 21):
            clean = medulla[number * 20 + field, 40:104, 40:104]
            noise = np.random.default_rng(field).normal(0, 12, clean.shape)
            noisy = np.clip(np.roll(clean, 1, 0) + noise, 0, 255).astype(np.uint8)
            tifffile.imwrite(folder / name / f"noisy_{field}.tif", noisy)
            tifffile.imwrite(folder / name / f"clean_{field}.tif", clean)
    weights = load_file(SHIPPED)
    save_file({name: value * 1.01 for name, value in weights.items()}, folder / "flow.safetensors")
    for seed, name, task in ((0, "given", "vemdiffuse-i"), (1, "given2", "vemdiffuse-i"), (2, "denoiser", "emdiffuse-n")):
        _write_model(folder / name, seed, task)


    size = "\t".join(map(str, SIZE.values()))
    (folder / "sheet.tsv").write_text(f"name\tsource\tz\ty\tx\nlisted\tthin.tif\t{size}\n")
    torch.manual_seed(0)
    features = {f"features.{name}": values for name, values in alexnet().features.state_dict().items()}
    with torch.device("meta"):
        shapes = {name: values.shape for name, values in alexnet().state_dict().items()}
    # LPIPS does not use the classifier, and zeros take little space
    known = {name: features.get(name, torch.zeros(1).expand(shape)) for name, shape in shapes.items()}
    torch.save(known, folder / "alexnet.pth")


def _write_levels(path: Path, values: NDArray[np.uint8]) -> None:
    """Write an OME-Zarr of two levels."""
    group = zarr.create_group(path)
    scales = []
    for level in range(2):
        zarr.create_array(path / str(level), data=values[:, :: 1 + level, :: 1 + level], chunks=(1, 16, 16))
        scale = [30.0, 10.0 * (1 + level), 10.0 * (1 + level)]
        scales.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": scales}]}


def _write_model(folder: Path, seed: int, task: str) -> None:
    torch.manual_seed(seed)
    spec: Values = {"channels": 8, "multipliers": [1], "blocks": 1, "residual_scale": 0.2}
    spec |= {"conditions": 1} if task == "emdiffuse-n" else {"factors": [2, 12], "thickness": [0, 1]}
    network = NativeNetwork(**spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    known = {"task": task, "network": {"architecture": "native", **spec}, "objective": {"prediction": "flow"}}
    known |= {} if task == "emdiffuse-n" else {"factors": [3]}
    save_model(folder, network, Description.model_validate(known))
