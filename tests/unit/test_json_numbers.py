"""The program writes no NaN or infinity in JSON, which has no such numbers."""

import ast
import json
import math

import numpy as np
import pytest
from helpers import ROOT

from emdiffuse.runtime.json_files import as_json, as_json_line, write_json

NOT_WRITTEN = {
    "config/settings.py": "hashed, or handed to a command",
    "enhance/tiff.py": "the description that the user's own TIFF has",
    "readers/precomputed.py": "compared, or handed to tensorstore",
    "readers/stores.py": "compared",
    "registration/raft_training.py": "hashed",
    "stores/provenance.py": "hashed, or printed",
    "viewing/images.py": "part of a link",
}
"""Modules whose JSON text is not written to a file, and its use."""


def refuse(name):
    raise ValueError(f"{name} is no JSON")


def test_every_file_is_written_by_the_one_writer_that_knows():
    makers = set()
    for path in (ROOT / "emdiffuse").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.dump", "json.dumps"):
                makers.add(path.relative_to(ROOT / "emdiffuse").as_posix())
    assert makers - {"runtime/json_files.py"} == NOT_WRITTEN.keys(), "write files by `write_json`"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float64("nan")])
@pytest.mark.parametrize("nest", [lambda v: {"a": v}, lambda v: [[v]], lambda v: {"a": ({"b": (v, 1)},)}])
def test_what_is_no_number_becomes_null(tmp_path, number, nest):
    write_json(tmp_path / "a.json", nest(number))
    for text in ((tmp_path / "a.json").read_text(), as_json(nest(number)), as_json_line(nest(number))):
        assert "null" in text and json.loads(text, parse_constant=refuse)
