"""Provenance: a chain of hashes from the raw files to every result.

Conventions
-----------
* Every store, model and result records how it was *made*: a `Link`, whose hash covers its stage, the settings
  that can change a voxel, and the hashes of its inputs. The first links are the raw files, identified by the
  checksums of their content; paths and names of data are not part of a hash.
* Resuming, reusing, comparing and refusing depend only on this hash.
* Snakemake removes declared outputs before a job runs again. Therefore a copy of the file that identifies a
  store or result is *kept* beside it (``.NAME.kept``): if it has the right hash, the stage restores the file
  from the copy, and does nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from emdiffuse.config.settings import Record, Section
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.errors import StoreError
from emdiffuse.runtime.json_files import as_json
from emdiffuse.runtime.progress import logger

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SourceFile(Record):
    """A raw file, a folder of chunks or a URL that data were made from.

    Attributes
    ----------
    path : str
        Its path at the time.
    bytes : int or None
        Size.
    sha256 : str
        Checksum of its content; see `acquisition.checksums`.
    kept_every : int or None
        For a thinned volume: every `kept_every`-th slice was kept.
    seen_as : "noisy", "degraded" or None
        Set if a model learned only from the noisy pixels of this file, or from degraded copies of them, and
        never saw the clean image.
    """

    path: str
    bytes: int | None = Field(None, ge=0)
    sha256: Sha256
    kept_every: int | None = Field(None, ge=2)
    seen_as: Literal["noisy", "degraded"] | None = None


def digest(*values: object) -> str:
    """Return 32 hexadecimal digits that identify settings: sections, or plain JSON values."""
    plain = [value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


class Link(Record):
    """How something was made: the stage, its settings, and the links of its inputs.

    Attributes
    ----------
    stage : str
        The stage that made it.
    name : str
        Name of the dataset, model or file, for display; not part of the hash.
    settings : dict
        Settings of the stage that can change a voxel.
    inputs : tuple of Link
        Links of the inputs; their order matters.
    hash : str
        Hash of stage, settings and the inputs' hashes, verified on reading.
    """

    stage: str
    name: str = ""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: tuple[Link, ...] = ()
    hash: str = ""

    @model_validator(mode="after")
    def _own_hash(self) -> Link:
        own = digest(self.stage, self.settings, [link.hash for link in self.inputs])
        if self.hash not in ("", own):
            raise ValueError("the hash does not match stage, settings and inputs: the record was edited")
        object.__setattr__(self, "hash", own)  # bypass the frozen model
        return self

    def chain(self, depth: int = 0) -> Iterator[tuple[int, Link]]:
        """Yield this link and all its inputs, recursively, each with its depth."""
        yield depth, self
        for link in self.inputs:
            yield from link.chain(depth + 1)

    def told(self) -> str:
        """Return the chain as text: one line per link, indented by depth, inputs below."""
        return "\n".join(f"{'    ' * depth}{link._line()}" for depth, link in self.chain())

    def _line(self) -> str:
        settings = ", ".join(f"{key} {_short(value)}" for key, value in self.settings.items())
        return f"{self.hash[:12]}  {self.stage} {self.name}{f'  ({settings})' if settings else ''}"


def _short(value: JsonValue) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def made_by(stage: str, name: str, settings: Section | dict[str, Any], *inputs: Link) -> Link:
    """Return the link of a stage, from its settings and the links of its inputs."""
    plain = settings.model_dump(mode="json") if isinstance(settings, Section) else settings
    return Link(stage=stage, name=name, settings=plain, inputs=inputs)


def raw(sources: Sequence[SourceFile]) -> Link:
    """Return the link of raw files: their content and, if there are several, their names.

    Parameters
    ----------
    sources : sequence of SourceFile
        Files, in the order of use.
    """
    paths = [PurePath(source.path) for source in sources]
    folder = os.path.commonpath([path.parent for path in paths]) if len(paths) > 1 else ""
    names = [path.relative_to(folder).as_posix() if folder else "" for path in paths]
    content = digest([[name, source.sha256] for name, source in zip(names, sources, strict=True)])
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    name = f"{paths[0].name}{more}" if paths else "nothing"
    return made_by("raw", name, {"sha256": sources[0].sha256 if len(sources) == 1 else content})


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def raw_file(path: Path) -> Link:
    """Return the link of one raw file."""
    return raw([SourceFile(path=str(path), sha256=file_sha256(path))])


def kept_copy(path: Path) -> Path:
    """Return the path of a file's kept copy."""
    return path.with_name(f".{path.name}.kept")


def write_and_keep(path: Path, content: dict[str, Any]) -> None:
    """Write the JSON file that identifies a store or result, and its kept copy."""
    text = as_json(content)
    write_atomically(kept_copy(path), text)
    write_atomically(path, text)


def put_back(path: Path, made: Link, **names: Any) -> dict[str, Any] | None:
    """Restore a file from its kept copy if that has the right hash; return its content, or None.

    Parameters
    ----------
    path : Path
        ``zarr.json`` of a store, or a result.
    made : Link
        How it would be made now.
    names
        Current values of its fields that are not part of the hash, as JSON: names and paths of data.
    """
    try:
        text = kept_copy(path).read_text()
        content: dict[str, Any] = json.loads(text)
        known = _known(content)
        own = known["made"]["hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if own != made.hash:
        return None
    told = {"made": made.model_dump(mode="json"), **names}
    if any(known.get(key) != value for key, value in told.items()):
        known.update(told)
        write_and_keep(path, content)
    elif not path.exists():
        write_atomically(path, text)
    return content


def forget(path: Path) -> None:
    """Remove the file that identifies a store or result, and its copy, so that it is recomputed."""
    for file in (kept_copy(path), path):
        file.unlink(missing_ok=True)


def reuse(path: Path, made: Callable[[], Link], names: Callable[[], dict[str, Any]] = dict) -> bool:
    """Return whether a store is up to date; if so, restore its ``zarr.json``.

    Parameters
    ----------
    path : Path
        The store.
    made : callable
        Returns how it would be made now; called only if there is a store to compare with, since it may read
        all raw files.
    names : callable
        Returns the facts that are not part of the hash; see `put_back`.
    """
    file = path / "zarr.json"
    if not kept_copy(file).exists():
        return False
    if put_back(file, made(), **names()) is None:
        logger.info("%s: made from other data or with other settings; recomputing it", path)
        return False
    logger.info("%s: already made from the same data with the same settings; nothing to do", path)
    return True


def _known(content: Any) -> Any:
    """Return the facts in the JSON file that identifies a store or result."""
    return content["attributes"]["emdiffuse"] if "node_type" in content else content


def listed(sources: Sequence[SourceFile]) -> list[dict[str, JsonValue]]:
    """Return raw files as JSON, in the form of a store's facts."""
    return [file.model_dump(mode="json", exclude_none=True) for file in sources]


FILES = ("zarr.json", "best/model.json", "model.json", "plan.json")
"""Files that identify a folder, in order of priority."""


def read_link(path: Path) -> Link:
    """Return how a store, model or result was made.

    Parameters
    ----------
    path : Path
        The folder of a store or model, or a JSON file of a result.

    Raises
    ------
    StoreError
        If it is not recorded, or was edited.
    """
    file = next((path / name for name in FILES if (path / name).is_file()), path)
    try:
        return Link.model_validate(_known(json.loads(file.read_text()))["made"])
    except OSError as error:
        raise StoreError(
            f"{file}: cannot be read ({error.strerror}); give a store, a model or a result", path
        ) from None
    except ValidationError as error:
        raise StoreError(f"{file}: {error.errors()[0]['msg'].removeprefix('Value error, ')}", file) from None
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{file}: its provenance is not recorded; create it again", file) from None
