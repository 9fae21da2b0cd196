"""Reference pages generated from the code: configuration, commands, and Python.

mkdocs calls `on_files` while building; the pages are not stored in the repository.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from emdiffuse.cli import app
from emdiffuse.config import json_schema

PACKAGE = Path(inspect.getfile(json_schema)).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {"configuration": configuration(), "commands": commands(), "api": api()}
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def configuration() -> str:
    """Return the page of all keys, from the models that validate them."""
    schema = json_schema()
    sections = {"The file": schema, **schema["$defs"]}
    lines = [
        "# Configuration",
        "",
        "All keys of `config.yaml`, as the program validates them. An unknown key, a missing file or an",
        "impossible value is reported before anything runs, in one sentence that names the key.",
    ]
    for title, section in sections.items():
        if "properties" not in section:
            continue
        lines += ["", f"## {title}", "", _words(section.get("description", "")), ""]
        lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        for key, facts in section["properties"].items():
            needed = key in section.get("required", ())
            default = "required" if needed else _default(facts)
            lines.append(f"| `{key}` | {_type(facts)} | {default} | {_words(facts.get('description', ''))} |")
    return "\n".join(lines) + "\n"


def _type(facts: dict[str, Any]) -> str:
    """Return the type of a key in words; a section links to its table."""
    if "$ref" in facts:
        name = facts["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in facts or "oneOf" in facts:
        kinds = [_type(one) for one in facts.get("anyOf") or facts["oneOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in facts:
        return ", ".join(f"`{value}`" for value in facts["enum"])
    if "const" in facts:
        return f"`{facts['const']}`"
    if "prefixItems" in facts:
        return f"{len(facts['prefixItems'])} values"
    if facts.get("type") == "array":
        return f"list of {_type(facts['items'])}"
    if facts.get("type") == "object" and isinstance(facts.get("additionalProperties"), dict):
        return f"{_type(facts['additionalProperties'])} by name"
    if facts.get("type") == "object" and "patternProperties" in facts:
        return f"{_type(next(iter(facts['patternProperties'].values())))} by name"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
    return words.get(facts.get("type", ""), "any")


def _default(facts: dict[str, Any]) -> str:
    default = facts.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _words(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def commands() -> str:
    """Return the page of all commands, from the command line."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group) or hasattr(root, "commands")
    lines = ["# Commands", "", "The help texts of `emdiffuse` and its commands."]
    for name, command in _leaves("", root):
        lines += ["", f"## {name}", "", _words(command.help or ""), ""]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join([*(_parameter(p).strip("`") for p in arguments), "[OPTIONS]"])
        lines += ["```text", f"emdiffuse {name} {usage}", "```"]
        rows = [(_parameter(p), _words(getattr(p, "help", None) or ""), _given(p)) for p in command.params]
        rows = [row for row in rows if row[0] != "`--help`"]
        if rows:
            lines += ["", "| | meaning | default |", "| --- | --- | --- |"]
            lines += [f"| {name} | {meaning} | {default} |" for name, meaning, default in rows]
    return "\n".join(lines) + "\n"


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield all executable commands, with their full names."""
    children = getattr(command, "commands", {})
    if path and (not children or getattr(command, "invoke_without_command", False)):
        yield path, command
    for name, child in sorted(children.items()):
        yield from _leaves(f"{path} {name}".strip(), child)


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _given(parameter: Any) -> str:
    default = parameter.default
    if default is None or callable(default) or default is False or str(default).startswith("Sentinel"):
        return ""
    return f"`{default}`"


def api() -> str:
    """Return the page of public functions and classes, from their docstrings."""
    lines = [
        "# Python",
        "",
        "Public functions and classes, folder by folder. Axes are (z, y, x) and voxel sizes nanometers,",
        "unless a docstring states otherwise. Mistakes in the user's input raise a subclass of",
        "`emdiffuse.runtime.errors.EmdiffuseError`.",
    ]
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE.parent).with_suffix("")
        if "workflow" in relative.parts or path.name == "__main__.py" or "cli" in relative.parts:
            continue
        module = ".".join(part for part in relative.parts if part != "__init__")
        tree = ast.parse(path.read_text())
        members = [node for node in tree.body if _public(node)]
        if not members:
            continue
        lines += ["", f"## {module}", "", _words((ast.get_docstring(tree) or "").split("\n\n")[0])]
        for node in members:
            lines += ["", f"### {module}.{node.name}", "", "```text", _signature(node), "", _doc(node), "```"]
    return "\n".join(lines) + "\n"


def _public(node: ast.AST) -> bool:
    known = isinstance(node, ast.FunctionDef | ast.ClassDef)
    return known and not node.name.startswith("_") and ast.get_docstring(node) is not None


def _signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returned}"


def _doc(node: ast.FunctionDef | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").replace("```", "'''")
