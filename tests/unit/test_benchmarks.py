"""Benchmarks, and the scripts for the shipped models, start; no test runs them to the end.

mypy checks that they match the package (``make lint``).
"""

import ast
import re
import runpy
import sys

import pytest
from helpers import ROOT

SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "config/pretrained")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_starts_and_states_its_command(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    explained = ast.get_docstring(ast.parse(script.read_text()))
    assert re.search(rf"^    .*\bpython {script.relative_to(ROOT)}", explained, re.M), (
        "its command is missing"
    )
    assert "".join(explained.splitlines()[0].split()) in "".join(said.split())
    table = (script.parent / "README.md").read_text()
    assert f"python {script.relative_to(ROOT)}" in table, f"{script.parent.name}/README.md does not name it"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_script_hides_code_in_a_string(script):
    """Code for another process is also a function, as mypy reads no strings."""
    strings = (node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Constant))
    assert not [node.lineno for node in strings if "from emdiffuse" in str(node.value)]
