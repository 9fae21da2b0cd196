"""The publications that a run is based on."""

from __future__ import annotations

from typing import Any

from emdiffuse.config import Config

REFERENCES = {
    "emdiffuse": ("Lu et al. 2024, Nature Communications", "10.1038/s41467-024-49125-z", "EMDiffuse"),
    "ddpm": ("Ho et al. 2020", "10.48550/arXiv.2006.11239", "the DDPM sampler"),
    "ddim": ("Song et al. 2021", "10.48550/arXiv.2010.02502", "the DDIM sampler"),
    "dpm++": ("Lu et al. 2022", "10.48550/arXiv.2211.01095", "the DPM-Solver++ sampler"),
    "unipc": ("Zhao et al. 2023", "10.48550/arXiv.2302.04867", "the UniPC sampler"),
    "heun": ("Karras et al. 2022", "10.48550/arXiv.2206.00364", "the Heun sampler"),
    "ssim": ("Wang et al. 2004", "10.1109/TIP.2003.819861", "SSIM"),
    "fsim": ("Zhang et al. 2011", "10.1109/TIP.2011.2109730", "FSIM"),
    "ms_ssim": ("Wang et al. 2003", "10.1109/ACSSC.2003.1292216", "MS-SSIM"),
    "lpips": ("Zhang et al. 2018", "10.48550/arXiv.1801.03924", "LPIPS"),
    "frc_resolution": ("Saxton & Baumeister 1982", "10.1111/j.1365-2818.1982.tb00405.x", "ring correlation"),
    "decorrelation_resolution": (
        "Descloux et al. 2019",
        "10.1038/s41592-019-0515-7",
        "decorrelation analysis",
    ),
    "flow": ("Kroeger et al. 2016", "10.1007/978-3-319-46493-0_29", "optical flow between slices"),
    "nlm": ("Buades et al. 2005", "10.1109/CVPR.2005.38", "non-local means"),
    "bm3d": ("Dabov et al. 2007", "10.1109/TIP.2007.901238", "BM3D"),
    "trust": ("Ilg et al. 2018", "10.1007/978-3-030-01234-2_40", "sparsification"),
    "calibration": ("Bates et al. 2021", "10.1145/3478535", "risk-controlling prediction sets"),
    "raft": ("Teed & Deng 2020", "10.48550/arXiv.2003.12039", "RAFT, optical flow"),
    "cubic": ("Keys 1981", "10.1109/TASSP.1981.1163711", "cubic interpolation"),
    "ome": ("Moore et al. 2023", "10.1007/s00418-023-02209-1", "OME-Zarr"),
    "zarr": ("Zarr developers 2020", "10.5281/zenodo.3773449", "Zarr"),
    "snakemake": ("Mölder et al. 2021", "10.12688/f1000research.29032.2", "Snakemake"),
}
"""Citations (text, doi, subject) by the metric, method, sampler or key that is based on them."""


def references(config: Config, evaluations: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the publications that this run is based on."""
    samplers: list[str] = [item.sampler.name for item in config.restorations if item.sampler.name]
    samplers += [key for key in REFERENCES if any(f"({key})" in found["estimator"] for found in evaluations)]
    used = {name for found in evaluations for method in found["methods"].values() for name in _deep(method)}
    used |= {name for found in evaluations for name in [*found["methods"], *found]}
    used |= {"calibration" for item in config.restorations if item.calibration}
    pairs = any(dataset.pairs for dataset in config.datasets.values())
    keys = ["emdiffuse", *samplers, *(key for key in REFERENCES if key in used), *["raft"] * pairs]
    keys = list(dict.fromkeys([*keys, "ome", "zarr", "snakemake"]))
    return [dict(zip(("text", "doi", "what"), REFERENCES[key], strict=True)) for key in keys]


def _deep(method: dict[str, Any]) -> set[str]:
    """Return the metrics of a method, in any orientation."""
    return {measure for measures in method.values() for measure in measures}
