"""The files of a workflow folder: configuration, sample sheet, Snakefile and profiles.

Conventions
-----------
* The profiles are the packaged ones, completed for this machine and its cluster. Unknown settings keep their
  default and the mark EDIT.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml

from emdiffuse import __version__
from emdiffuse.config.tasks import TASKS
from emdiffuse.project.proposal import GivenModel, Learned, Proposal
from emdiffuse.project.survey import Finding
from emdiffuse.project.workflow import profile
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.errors import ConfigError

LARGEST_LIST = 1
"""Maximum number of restored datasets in the configuration itself; more are written to a sheet."""


@dataclass(frozen=True)
class Cluster:
    """SLURM settings of jobs; None if unknown.

    Attributes
    ----------
    partition, gpu_partition : str or None
        Partitions for jobs without and with a GPU.
    account : str or None
        Account to charge.
    gpu : bool
        Whether the cluster has GPUs.
    """

    partition: str | None = None
    gpu_partition: str | None = None
    account: str | None = None
    gpu: bool = True


def config_text(proposal: Proposal, sheet: bool) -> str:
    """Return ``config.yaml``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = lambda value: f"{value:g}"
    environment.filters["name"] = _name
    listed = () if sheet else proposal.restored
    learned = [one for one in proposal.learned if one not in listed]
    model = proposal.model
    restored = ["*"] if sheet else [one.name for one in proposal.restored]
    return environment.get_template("config.yaml.j2").render(
        version=__version__,
        why=proposal.why[0].upper() + proposal.why[1:],
        sheet=sheet,
        datasets=[*listed, *learned, *(one for one in proposal.thinned if one not in learned)],
        thinned=proposal.thinned,
        factor=proposal.factor,
        model=model,
        model_name=proposal.model_name,
        title=TASKS[model.task].title,
        names=[*restored, *(f"{one.name}_thin" for one in proposal.thinned)],
        one_call=isinstance(model, GivenModel),
        noisy=isinstance(model, Learned) and model.noisy,
        title_of_report=" and ".join(one.name for one in (*proposal.restored, *proposal.thinned)[:3]),
    )


def _name(text: str) -> str:
    """Return a name for YAML, quoted if it would be read as a number, a truth value or a comment."""
    return yaml.safe_dump(text, allow_unicode=True, width=10**6).splitlines()[0]


def sheet_text(restored: tuple[Finding, ...]) -> str:
    """Return ``datasets.tsv``."""
    stretched = any(one.stretched for one in restored)
    rows = ["name\tsource\tz\ty\tx\timages" + ("\tsquare_pixels" if stretched else "")]
    for one in restored:
        size = "\t".join("" if value is None else f"{value:g}" for value in one.size)
        rows.append(f"{one.name}\t{one.source}\t{size}\t{'true' if one.kind == 'images' else ''}")
        if stretched:
            rows[-1] += f"\t{'true' if one.stretched else ''}"
    return "\n".join(rows) + "\n"


def local_profile(cores: int, gpus: int) -> str:
    """Return the profile of this machine, with one worker per GPU, or else per core."""
    text = profile("local")
    for stage, workers in (("restore", gpus or cores), ("stitch", cores)):
        text = _changed(text, rf"  - {stage}=\d+", f"  - {stage}={workers}")
    return text


def slurm_profile(cluster: Cluster) -> str:
    """Return the profile of a cluster."""
    text = profile("slurm")
    if cluster.partition:
        text = _changed(text, r"slurm_partition: cpu  # EDIT.*", f"slurm_partition: {cluster.partition}")
    if cluster.account:
        text = _changed(text, r"# slurm_account: lab  # EDIT.*", f"slurm_account: {cluster.account}")
    if not cluster.gpu:
        text = re.sub(r"\n +slurm_partition: gpu  # EDIT.*", "", text)
        text = _changed(text, r"\n    gpu: 1\n", "\n    gpu: 0\n")
    elif cluster.gpu_partition:
        text = _changed(text, r"slurm_partition: gpu  # EDIT.*", f"slurm_partition: {cluster.gpu_partition}")
    return text


def _changed(text: str, pattern: str, replacement: str) -> str:
    """Replace all matches of a pattern, of which there is at least one."""
    changed, count = re.subn(pattern, replacement, text)
    assert count, f"the profile lacks {pattern}"
    return changed


def write_folder(folder: Path, files: dict[str, str]) -> None:
    """Write the files of a workflow folder; ``config.yaml`` comes last.

    Raises
    ------
    ConfigError
        If one of them exists; nothing is written then.
    """
    for name in files:
        if (folder / name).exists():
            raise ConfigError(f"{folder / name} already exists; name another folder, or move it away")
    for name in sorted(files, key=lambda name: name == "config.yaml"):
        write_atomically(folder / name, files[name])
