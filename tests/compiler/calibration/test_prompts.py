"""Prompts of a calibration: one a line, or the built-in ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffc.compiler.calibration.prompts import PROMPTS, read_prompts
from diffc.compiler.errors import BuildError


def test_blank_lines_and_spaces_around_a_prompt_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("\n  a red circle \n\n\tкруг\n", encoding="utf-8")
    assert read_prompts(tmp_path / "x.txt") == ("a red circle", "круг")


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "holds no prompts"), (b"\xff\xfe", "cannot be read")])
def test_refuses_a_file_without_prompts(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(BuildError, match=message):
        read_prompts(tmp_path / "x.txt")
    with pytest.raises(BuildError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


def test_the_built_in_prompts_differ() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS) and all(prompt == prompt.strip() for prompt in PROMPTS)
