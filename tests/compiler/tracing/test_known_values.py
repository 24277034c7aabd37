"""Follow known masks beside a trace: questions about them are answered and listed, all else is recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from diffc.compiler.graph.evaluate import apply
from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.tracing.known_values import Known
from diffc.compiler.tracing.recorder import Recorder
from diffc.compiler.tracing.symbolic_tensor import Symbolic

MASK = torch.tensor([[1, 1, 1, 0, 0]])


def symbolic(tensor: torch.Tensor, name: str) -> Symbolic:
    return Symbolic(FAKES.from_tensor(tensor), name)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(FAKES)


@pytest.fixture
def mask() -> Symbolic:
    mask = symbolic(MASK, "mask")
    mask.known = Known(MASK, [])
    return mask


@pytest.mark.parametrize(
    "ask",
    [
        lambda mask: mask.sum(dim=1).tolist(),
        lambda mask: int(mask.sum()),
        lambda mask: bool(mask.all()),
        lambda mask: mask.bool().nonzero().tolist(),
        lambda mask: list(range(mask.sum().item())),
        lambda mask: torch.equal(mask, torch.ones_like(mask)),
        lambda mask: torch.arange(9)[: mask.sum() - 1].tolist(),
        lambda mask: mask.masked_fill(mask == 0, 7).tolist(),
    ],
)
def test_questions_about_known_values_are_answered_and_listed(ask: Any, recorder: Recorder, mask: Symbolic) -> None:
    assert mask.known is not None
    with recorder:
        answer = ask(mask)
    assert answer == ask(MASK)
    assert len(mask.known.questions) == 1
    assert "test_known_values.py:" in mask.known.questions[0]


def test_what_is_not_asked_is_only_recorded(recorder: Recorder, mask: Symbolic) -> None:
    with recorder:
        inverted = 1 - mask
        inverted[:, 0] = 5
        recorder.name(inverted)
    assert mask.known is not None
    assert mask.known.questions == []
    assert [op.operator.split(".")[1] for op in recorder.ops][0] == "rsub"
    assert torch.equal(inverted.known.result, torch.tensor([[5, 0, 0, 1, 1]]))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("shape", "index"),
    [
        ((1, 5, 2), lambda mask: mask.bool()),
        ((3, 5), lambda mask: (slice(None), mask[0].bool())),
        ((5, 2), lambda mask: mask[0] == 0),
    ],
)
def test_a_known_mask_selects_rows_as_a_slice(
    shape: tuple[int, ...], index: Any, recorder: Recorder, mask: Symbolic
) -> None:
    values = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    with recorder:
        rows = symbolic(values, "x")[index(mask)]
    assert rows.shape == values[index(MASK)].shape
    assert recorder.ops[-1].operator == "aten.slice.Tensor"


@pytest.mark.parametrize(
    ("shape", "index"),
    [((1, 5, 2), lambda mask: mask == 0), ((3, 5), lambda mask: (slice(None), mask[0] == 0))],
)
def test_rows_are_written_where_a_known_mask_selects_them(
    shape: tuple[int, ...], index: Any, recorder: Recorder, mask: Symbolic
) -> None:
    values = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    expected = values.clone()
    expected[index(MASK)] = -values[index(MASK)]
    with recorder:
        written = symbolic(values, "x") * 1
        written[index(mask)] = -written[index(mask)]
        name = recorder.name(written)
    results: dict[str, torch.Tensor] = {"x": values, "mask": MASK}
    for op in recorder.ops:
        assert "index" not in op.operator
        results |= zip((value.name for value in op.results), apply(op, results, {}), strict=True)
    assert torch.equal(results[name], expected)


def test_a_constant_mask_selects_rows(recorder: Recorder) -> None:
    with recorder:
        rows = symbolic(torch.zeros(1, 5, 2), "x")[MASK.bool()]
    assert rows.shape == (3, 2)


def test_an_index_of_the_first_of_all_axes_is_recorded(recorder: Recorder) -> None:
    with recorder:
        rows = torch.ops.aten.index.Tensor(symbolic(torch.zeros(3, 5), "x"), [torch.tensor([0, 2]), None])
    assert rows.shape == (2, 5)


def test_a_value_is_not_known_if_an_operand_is_not(recorder: Recorder, mask: Symbolic) -> None:
    with recorder, pytest.raises(DataDependentOutputException):
        bool((symbolic(torch.zeros(1, 5), "x") * mask).sum() > 0)
