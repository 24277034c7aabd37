"""Compile programs of several captures into one bundle: names, graphs and weights stay apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler import capture, write_bundle
from diffc.compiler.driver.own_programs import brought_together
from diffc.compiler.errors import BuildError
from diffc.compiler.ir.program import Program
from diffc.runtime import load
from tests.tolerances import PICTURE
from tests.zoo.components import bert_tokenizer, t5_tokenizer


def layer(seed: int) -> nn.Module:
    """Build a layer with random weights."""
    torch.manual_seed(seed)
    return nn.Linear(4, 4).eval().requires_grad_(False)


def captured(name: str, module: nn.Module, rows: int = 1) -> Program:
    """Capture a program that applies a component, named ``net``, to noise."""
    return capture(lambda: module(torch.randn(rows, 4)), {"net": module}, name=name)


def together(programs: Sequence[Program]) -> Sequence[Program]:
    """Bring programs without tokenizers together."""
    return brought_together(programs, {})[0]


def test_two_components_of_one_name_keep_their_weights(tmp_path: Path) -> None:
    first, second = layer(0), layer(1)
    path = write_bundle([captured("first", first), captured("second", second)], tmp_path / "x.diffc")
    sampler, noise = load(path), torch.randn(1, 4, generator=torch.Generator().manual_seed(3))
    for name, module in (("first", first), ("second", second)):
        sampled = sampler(program=name, seed=3, output="np")
        assert np.abs(sampled - module(noise).numpy()).max() <= PICTURE
    assert set(sampler.manifest["graphs"]) == {"net", "net_2"}
    assert {entry["component"] for entry in sampler.manifest["graphs"].values()} == {"net", "net_2"}


def test_one_component_captured_twice_is_one_graph() -> None:
    module = layer(0)
    first, second = together([captured("first", module), captured("second", module)])
    assert first.graphs[0] is second.graphs[0]


def test_equal_weights_elsewhere_in_memory_are_one_graph() -> None:
    first, second = together([captured("first", layer(0)), captured("second", layer(0))])
    assert first.graphs[0] is second.graphs[0]


def test_one_component_in_two_shapes_is_two_graphs_of_one_component() -> None:
    module = layer(0)
    first, second = together([captured("first", module), captured("second", module, rows=2)])
    assert (first.graphs[0].name, second.graphs[0].name) == ("net", "net_2")
    assert {graph.component for program in (first, second) for graph in program.graphs} == {"net"}
    assert [op.operator for op in second.ops] == ["noise", "net_2"]


def test_a_new_name_is_not_another_graphs() -> None:
    one, two, other = layer(0), layer(1), layer(2)

    def both() -> torch.Tensor:
        return other(two(torch.randn(1, 4)))

    second = capture(both, {"net": two, "net_2": other}, name="second")
    _, renamed = together([captured("first", one), second])
    assert [op.operator for op in renamed.ops] == ["noise", "net_3", "net_2"]


def test_two_programs_of_one_name_are_refused(tmp_path: Path) -> None:
    programs = [capture(lambda: torch.randn(1, 4), {}) for _ in range(2)]
    with pytest.raises(BuildError, match="2 programs are named main") as refused:
        write_bundle(programs, tmp_path / "x.diffc")
    assert refused.value.fix is not None and "name=" in refused.value.fix and not list(tmp_path.iterdir())


def test_a_program_with_several_results_is_refused(tmp_path: Path) -> None:
    program = capture(lambda: (torch.randn(1, 4), torch.randn(1, 3)), {})
    with pytest.raises(BuildError, match="main returns 2 tensors, and a bundle returns one"):
        write_bundle([program], tmp_path / "x.diffc")


def of_ids(name: str, words: Any) -> Program:
    """Capture a program that returns the ids of a text."""

    def ids(prompt: str) -> Any:
        options = {"padding": "max_length", "max_length": 16, "truncation": True, "return_tensors": "pt"}
        return words(prompt, **options).input_ids.float()

    return capture(ids, {"words": words}, name=name)


def test_two_tokenizers_of_one_name_stay_apart(tmp_path: Path) -> None:
    tokenizers = {"first": bert_tokenizer(), "second": t5_tokenizer(), "third": bert_tokenizer()}
    programs = [of_ids(name, words) for name, words in tokenizers.items()]
    sampler = load(write_bundle(programs, tmp_path / "x.diffc"))
    for name, words in tokenizers.items():
        expected = words(["a red circle"], padding="max_length", max_length=16, truncation=True)["input_ids"]
        assert sampler("a red circle", program=name, output="np").tolist() == expected
    assert set(sampler.manifest["tokenizers"]) == {"words", "words_2"}


def test_another_tokenizer_than_the_captured_one_is_refused(tmp_path: Path) -> None:
    program = of_ids("first", bert_tokenizer())
    with pytest.raises(BuildError, match="words is another tokenizer than first was captured with"):
        write_bundle(program, tmp_path / "x.diffc", tokenizers={"words": t5_tokenizer()})
    assert load(write_bundle(program, tmp_path / "x.diffc", tokenizers={"words": bert_tokenizer()}))
