"""Words of the command line: what each reads, and what it refuses with an example."""

from __future__ import annotations

from typing import Any

import click
import pytest

from diffc.compiler.commands.parameter_types import Counts, Interval, Named, Names, Setting, Size, Sizes


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [
        (Size(), "512x768", (512, 768)),
        (Sizes(), "512x512,768x512", ((512, 512), (768, 512))),
        (Counts(), "10,20", (10, 20)),
        (Interval(), "0.2,0.8", (0.2, 0.8)),
        (Names(), "sm86,sm89,sm86", ("sm86", "sm89")),
        (Named("a=b"), "name=x=y", ("name", "x=y")),
        (Named("a=b"), "conditions.0.index=x", ("conditions.0.index", "x")),
        (Setting("a=1"), "frames=16", ("frames", 16)),
        (Setting("a=1"), "flag=true", ("flag", True)),
        (Setting("a=1"), "text=two words", ("text", "two words")),
    ],
)
def test_reads(kind: click.ParamType[Any], word: str, value: object) -> None:
    assert kind.convert(word, None, None) == value


@pytest.mark.parametrize(
    ("kind", "word", "example"),
    [
        (Size(), "512", "512x512"),
        (Size(), "0x512", "512x512"),
        (Size(), "-1x512", "512x512"),
        (Sizes(), "512x512,", "512x512"),
        (Counts(), "10,0", "10,20"),
        (Counts(), "ten", "10,20"),
        (Interval(), "0.2", "0.2,0.8"),
        (Interval(), "0.2,0.8,1", "0.2,0.8"),
        (Named("image_embeds=1280"), "image_embeds", "image_embeds=1280"),
        (Named("image_embeds=1280"), "conditions.-1=2", "image_embeds=1280"),
        (Setting("num_frames=16"), "1st=2", "num_frames=16"),
    ],
)
def test_refuses_with_an_example(kind: click.ParamType[Any], word: str, example: str) -> None:
    with pytest.raises(click.BadParameter, match=example):
        kind.convert(word, None, None)
