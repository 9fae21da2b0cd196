"""Sections of settings and records of results, with strict keys and one-sentence errors.

Conventions
-----------
* Unknown keys are errors (``extra="forbid"``); values are frozen.
* A user writes a `Section`; a stage writes a `Record` that another stage reads. Records have strict types and
  finite numbers.
* A user's mistake raises `ConfigError`, whose text is one sentence that names the key.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from emdiffuse.runtime.errors import ConfigError, EmdiffuseError, printable


class Section(BaseModel):
    """A section of the configuration: frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def canonical(self, only: set[str] | None = None) -> str:
        """Return the section, or only some of its keys, as JSON with sorted keys.

        Stages receive this text and hash it; sorting makes it independent of the order of declaration.
        """
        return json.dumps(self.model_dump(mode="json", include=only), sort_keys=True)


class Record(Section):
    """A file that one stage writes and another reads."""


LARGEST = 2**63
"""Upper bound of seeds, counts and sizes: files and random generators store int64."""

SectionType = TypeVar("SectionType", bound=Section)


def parse(section: type[SectionType], values: Any, where: str = "config") -> SectionType:
    """Validate values against a section.

    Parameters
    ----------
    section : type
        The pydantic model.
    values : Any
        A mapping, or its JSON or YAML text.
    where : str
        Name of the values, for the error.

    Raises
    ------
    ConfigError
        One sentence that names the first wrong key and what is wrong with it.
    """
    if isinstance(values, str):
        values = read_text(values, where)
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping of keys to values, not {type(values).__name__}")
    _require_sane(values, where)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(section, values, error)}") from None


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses repeated keys, of which YAML would silently drop one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; keys that ``<<`` merges into it do not count as repeated."""
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name != "<<" and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{name}' appears twice in a mapping; keep one", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_text(text: str, where: str) -> Any:
    """Read JSON or YAML without repeated keys.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split()) or "nested too deeply"
        raise ConfigError(f"{where}: not valid YAML: {said}") from None


def require_unique_keys(path: Path) -> None:
    """Refuse a configuration file that has a repeated key or is not YAML.

    Raises
    ------
    ConfigError
        Names the key and its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); check the file") from None
    read_text(text, str(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"the key '{key}' appears twice in a mapping; keep one")
        found[key] = value
    return found


def _require_sane(values: Any, where: str) -> None:
    """Refuse numbers too large for any stage, and text that is not valid Unicode."""
    if isinstance(values, dict):
        for key, value in values.items():
            _require_sane(key, where)
            _require_sane(value, f"{where}: {key}" if where.count(":") == 0 else f"{where}.{key}")
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            _require_sane(value, f"{where}.{number}")
    elif isinstance(values, int) and abs(values) >= LARGEST:
        raise ConfigError(f"{where}: this number is too large; the largest is {LARGEST - 1}")
    elif isinstance(values, str) and (
        "\0" in values or values.encode("utf-8", "replace") != values.encode("utf-8", "surrogatepass")
    ):
        raise ConfigError(f"{where}: {printable(values)!r} contains invalid characters; type it again")


def parse_record(
    record: type[SectionType],
    content: bytes | str | dict[str, Any],
    path: Path,
    refused: type[EmdiffuseError],
    remedy: str = "it was edited, or written by another version; create it again",
) -> SectionType:
    """Read a record strictly: without type conversion, and without unknown keys.

    Parameters
    ----------
    record : type
        The pydantic model.
    content : bytes, str or dict
        JSON, as text or already parsed.
    path : Path
        Path of the file, for the error.
    refused : type
        Class of the error.
    remedy : str
        What to do if the file cannot be read.

    Raises
    ------
    EmdiffuseError
        An instance of `refused`: one sentence that names the file, the key and what is wrong with it.
    """
    try:
        values = content if isinstance(content, dict) else json.loads(content)
        text = json.dumps(content) if isinstance(content, dict) else content
        return record.model_validate_json(text, strict=True)
    except ValidationError as error:
        sentence = _sentence(record, values, error)
        raise refused(f"{path}: {sentence} ({remedy})", path) from None
    except (ValueError, RecursionError):
        raise refused(f"{path}: not valid JSON, perhaps truncated ({remedy})", path) from None
    except (TypeError, ArithmeticError) as error:  # raised by pydantic for an invalid fraction
        raise refused(f"{path}: it contains an invalid number: {error} ({remedy})", path) from None


_EXPECTED = {
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of names to values",
    "tuple_type": "a list",
    "list_type": "a list",
}
"""What pydantic calls by names of Python."""


def _told(value: Any) -> str:
    """Return what was given in place of a mapping or a list."""
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else "empty" if value is None else repr(value)


def _sentence(section: type[Section], values: Any, error: ValidationError) -> str:
    """Turn pydantic's errors into one sentence about the first one."""
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
    elif first["type"] in _EXPECTED:
        message = f"{_EXPECTED[first['type']]} is expected, but it is {_told(first['input'])}"
    elif "input" in first and not isinstance(first["input"], dict | list | tuple | BaseModel):
        message = f"{message[0].lower()}{message[1:]}, but it is {first['input']!r}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{key}: {message}{more}" if key else f"{message}{more}"


def _place(values: Any, location: tuple[int | str, ...]) -> list[int | str]:
    """Return the keys that lead to a value, without the tags that pydantic adds for union types."""
    keys, node = [], values
    for number, part in enumerate(location, 1):
        if part == "[key]":  # marks an error in the key itself, which precedes it
            continue
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
        if part in tagged:  # the tag of a union member
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
