"""Run the blocks of README and the guides as a reader would, and check what the pages point to."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from diffc.compiler.commands.cli import main
from tests.command_line import diffc
from tests.conftest import ROOT, UNET

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|python|toml)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^ {4}(diffc [^#\n]+)", re.M)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
RECIPE = "recipe.toml"

SLOW = ("quantization", "feature-caching", "inputs-and-tasks", "targets", "python")
"""Guides whose blocks build bundles of their own: make test-slow."""

RUN = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
    for page in PAGES
    if BLOCK.search(page.read_text(encoding="utf-8"))
]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each call of diffc on a page."""
    text = page.read_text(encoding="utf-8")
    run = [line for language, block in BLOCK.findall(text) if language == "sh" for line in block.splitlines()]
    for line in (*COMMAND.findall(text), *run):
        yield shlex.split(line)[1:]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the files that the pages take for granted, and be in it."""
    shutil.copy(UNET, tmp_path / "model.safetensors")
    (tmp_path / "prompts.txt").write_text("a red circle\n", encoding="utf-8")
    Image.fromarray(np.full((64, 64, 3), 128, dtype=np.uint8)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run(page: Path, reader: Path) -> None:
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "toml":
            (reader / RECIPE).write_text(block, encoding="utf-8")
        elif language == "python":
            exec(compile(block, str(page), "exec"), {})
        else:
            for line in block.splitlines():
                program, *words = shlex.split(line)
                assert program == "diffc", f"{line}: blocks call diffc alone"
                result = diffc(*words)
                assert result.exit_code == 0, f"{line}\n{result.output}"


@each_page
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for name, *words in commands(page):
        command = main.get_command(click.Context(main), name)
        assert command is not None, f"diffc {name}"
        options = {
            spelling for parameter in command.params for spelling in (*parameter.opts, *parameter.secondary_opts)
        }
        unknown = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} - options
        assert unknown == set(), f"diffc {name}"


@each_page
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_readme_is_a_front_page() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150, "move it to a guide"
