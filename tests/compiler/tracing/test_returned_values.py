"""What a component returns keeps its structure, whatever tensors it holds."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from diffc.compiler.tracing.returned_values import returned_tensors, with_tensors


def test_what_is_returned_keeps_its_structure() -> None:
    one, two, three = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    returned = {"a": one, "b": [SimpleNamespace(mean=two, kind="normal"), 7], "c": three}
    assert [len(tensor) for tensor in returned_tensors(returned)] == [1, 2, 3]
    copy = with_tensors(returned, iter([three, one, two]))
    assert (copy["a"] is three, copy["b"][0].mean is one, copy["c"] is two) == (True, True, True)
    assert copy["b"][0].kind == "normal" and copy["b"][1] == 7 and returned["b"][0].mean is two  # type: ignore[index]
