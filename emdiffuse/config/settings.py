"""Sections of settings and records of results: strict about keys, and parsed with errors of one sentence.

Conventions
-----------
* Unknown keys are errors (``extra="forbid"``), values are frozen.
* A `Section` is what a user writes, a `Record` what a stage writes and another reads: types are strict there,
  and numbers finite.
* A mistake of the user's raises `ConfigError`, whose text is one sentence that names the key.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from emdiffuse.runtime.errors import ConfigError, EmdiffuseError


class Section(BaseModel):
    """A section of the configuration: frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def canonical(self) -> str:
        """Return the section as JSON with sorted keys: what a stage is given, and what its hash is of."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


class Record(Section):
    """What a stage writes for others to read: a section whose numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


SectionType = TypeVar("SectionType", bound=Section)


def parse(section: type[SectionType], values: Any, where: str = "config") -> SectionType:
    """Validate values against a section.

    Parameters
    ----------
    section : type
        The pydantic model.
    values : Any
        A mapping, or a JSON or YAML text of one.
    where : str
        What the values are, for the error.

    Raises
    ------
    ConfigError
        One sentence that names the first wrong key and what is wrong with it.
    """
    if isinstance(values, str):
        try:
            values = yaml.safe_load(values)
        except yaml.YAMLError as error:
            raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a mapping of keys to values is expected, not {type(values).__name__}")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(section, values, error)}") from None


def parse_record(
    record: type[SectionType],
    content: bytes | str | dict[str, Any],
    path: Path,
    refused: type[EmdiffuseError],
    remedy: str = "it was edited, or written by another version; make it again",
) -> SectionType:
    """Read a record as strictly as it was written: no type is converted, no key is unknown.

    Parameters
    ----------
    record : type
        The pydantic model.
    content : bytes, str or dict
        JSON, as text or as Python's `json` reads it.
    path : Path
        Where it lies, for the error.
    refused : type
        Class of the error.
    remedy : str
        What to do about a file that cannot be read.

    Raises
    ------
    EmdiffuseError
        Of the class `refused`: one sentence that names the file, the key and what is wrong with it.
    """
    try:
        values = content if isinstance(content, dict) else json.loads(content)
        text = json.dumps(content) if isinstance(content, dict) else content
        return record.model_validate_json(text, strict=True)
    except ValidationError as error:
        sentence = _sentence(record, values, error)
        raise refused(f"{path}: {sentence} ({remedy})", path) from None
    except (ValueError, RecursionError):
        raise refused(f"{path}: not valid JSON; was it cut off? ({remedy})", path) from None


def _sentence(section: type[Section], values: Any, error: ValidationError) -> str:
    """Turn pydantic's errors into one sentence about the first of them."""
    errors = error.errors()
    first = errors[0]
    place = _place(values, first["loc"])
    key = ".".join(map(str, place))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _keys_at(section, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        message = f"unknown key; {hint}"
    elif first["type"] == "missing":
        message = "this key is missing"
    elif "input" in first and not isinstance(first["input"], dict | list | tuple | BaseModel):
        message = f"{message[0].lower()}{message[1:]}, but it is {first['input']!r}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{key}: {message}{more}" if key else f"{message}{more}"


def _place(values: Any, location: tuple[int | str, ...]) -> list[int | str]:
    """Return the keys that lead to a value, without what pydantic adds for values of several types."""
    keys, node = [], values
    for number, part in enumerate(location, 1):
        if isinstance(node, dict) and (part in node or number == len(location)):
            keys.append(part)
            node = node.get(part)
        elif isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
            keys.append(part)
            node = node[part]
    return keys


def _keys_at(section: type[Section], location: tuple[Any, ...]) -> list[str]:
    """Return the keys known at a location of the configuration."""
    schema: dict[str, Any] = section.model_json_schema()
    node = schema
    for part in location:
        node = _resolve(schema, node)
        tagged = node.get("discriminator", {}).get("mapping", {})
        if part in tagged:  # the kind of a value that may be of several
            node = {"$ref": tagged[part]}
        elif isinstance(part, int):
            node = node.get("items", {})
        else:
            named = [*node.get("patternProperties", {}).values(), node.get("additionalProperties") or {}]
            node = node.get("properties", {}).get(part) or named[0]
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Follow references and optional wrappers in a JSON schema."""
    for option in node.get("anyOf", []):
        if "$ref" in option:
            node = option
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node
