"""The documentation: it builds without broken links, and its examples are run."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers import ROOT
from running_docs import SHOWN, at_toy_size, blocks, check_part
from typer.testing import CliRunner

from emdiffuse.cli import app
from emdiffuse.config import json_schema, read_config, shipped
from emdiffuse.models.description import Description, NativeSpec
from emdiffuse.models.networks.build import build_network
from emdiffuse.models.networks.unet import UNet
from emdiffuse.models.networks.weights import save_model

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small stand-ins for the shipped models and a published checkpoint."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    small = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "residual_scale": 0.2}
    for name, task in shipped.SHIPPED.items():
        volumes = task.startswith("vem")
        spec = NativeSpec(**small, **({"factors": (2, 12)} if volumes else {"conditions": 1}))
        network = build_network(spec)
        description = Description(task=task, name=name, factors=(2, 12) if volumes else (), network=spec)
        save_model(folder / name, network, description)
    torch.save(UNet(in_channels=2).state_dict(), folder / "published.pth")
    return folder


@pytest.fixture
def place(tmp_path, medulla, models, monkeypatch):
    """A folder with toy data under the names used in the pages."""
    for part in ("scans", "incoming", "pairs/noisy", "pairs/clean", "raw"):
        (tmp_path / part).mkdir(parents=True)
    tifffile.imwrite(tmp_path / "sbf.tif", medulla[:19:6, :64, :64], photometric="minisblack")
    tifffile.imwrite(tmp_path / "fib.tif", medulla[:13, :64, :64], photometric="minisblack")
    for name in ("scan", "scans/a", "scans/b", "incoming/c"):
        height = 160 if name.startswith("scans") else 64  # enough to learn from
        tifffile.imwrite(tmp_path / f"{name}.tif", medulla[0, :height, :64])
    rng = np.random.default_rng(0)
    for number in range(4):
        clean = medulla[12 * number, :96, :96]
        noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"pairs/noisy/{number}.tif", noisy)
        tifffile.imwrite(tmp_path / f"pairs/clean/{number}.tif", clean)
    (tmp_path / "published.pth").symlink_to(models / "published.pth")
    monkeypatch.setattr(shipped, "SHIPPED_FOLDER", models)
    monkeypatch.setattr("emdiffuse.enhance.adapt.MOST_STEPS", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str], models: Path, commands: dict[str, str]) -> None:
    """Run a command as a shell would."""
    program, *arguments = words
    if program == "cd":
        os.chdir(arguments[0])
    elif program == "emdiffuse":
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, f"{words}: {done.output}"
        for config in Path().glob("*/config.yaml") if arguments[0] == "init" else ():
            config.write_text(at_toy_size(config.read_text(), models))
    else:
        assert program == "snakemake", (
            f"{program}: only emdiffuse, snakemake and cd are run; show others as console"
        )
        done = subprocess.run(words, capture_output=True, text=True, env=commands)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_run(page, place, models, commands):
    for block in blocks(DOCS / page):
        if block.language == "yaml" and block.title:
            Path(block.title).write_text(at_toy_size(block.text, models))
            if not block.text.startswith("sheet:"):
                read_config(Path(block.title))
        elif block.language == "yaml":
            check_part(block.text)
        elif block.language == "tsv":
            Path(block.title).write_text(block.text)
        elif block.language == "sh":
            for words in block.commands:
                run(words, models, commands)
        elif block.language == "python":
            compile(block.text, page, "exec")
        elif block.language == "console":
            assert {words[0] for words in block.commands} <= SHOWN
        else:
            assert block.language in ("text", "xml"), block.language
    logging.getLogger("emdiffuse").handlers.clear()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built documentation; a broken link, a missing page or an unlisted one fails the build."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_built(site):
    for page in PAGES:
        name = page.removesuffix(".md").removesuffix("index").rstrip("/")
        assert (site / name / "index.html").exists(), page


def test_the_reference_has_every_key_command_and_module(site):
    keys = (site / "reference/configuration/index.html").read_text()
    for section in json_schema()["$defs"].values():
        assert all(f"<code>{key}</code>" in keys for key in section.get("properties", ()))
    words = (site / "reference/commands/index.html").read_text()
    assert all(
        f">{name}" in words for name in ("acquire", "restore", "enhance", "init", "doctor", "estimate")
    )
    assert "emdiffuse.restoration.planning.make_plan" in (site / "reference/api/index.html").read_text()


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert "fonts.googleapis" not in text and "cdn" not in text.lower().split("</head>")[0], page


def test_the_readme_is_one_page_with_the_commands_of_the_documentation():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 80
    shown = {tuple(words) for page in PAGES for block in blocks(DOCS / page) for words in block.commands}
    for block in blocks(ROOT / "README.md"):
        for words in block.commands:
            assert words[0] == "make" or tuple(words) in shown, words
