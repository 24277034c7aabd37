"""Components are recorded in the block alone, and are then as they were."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.opaque_components import INLINE, OpaqueComponents
from diffc.compiler.tracing.recorder import Recorder
from diffc.compiler.tracing.request_inputs import Tensor


def test_a_call_is_one_operation_and_afterwards_the_component_computes() -> None:
    net, recorder = nn.Linear(3, 4), Recorder(FAKES)
    x = recorder.array("x", Tensor((2, 3)))
    with OpaqueComponents(recorder, ComponentCalls(), {"net": net}).recorded(), torch.no_grad(), recorder:
        y = net(x)
    (op,) = recorder.ops
    assert (op.operator, [value.type.shape for value in op.results], y.shape) == ("net", [(2, 4)], (2, 4))
    assert "forward" not in vars(net) and net(torch.zeros(2, 3)).tolist() == [net.bias.tolist()] * 2


@pytest.mark.parametrize("count", [INLINE, INLINE + 1])
def test_short_vectors_stand_in_the_call(count: int) -> None:
    net, recorder = nn.Linear(count, 1), Recorder(FAKES)
    with OpaqueComponents(recorder, ComponentCalls(), {"net": net}).recorded(), torch.no_grad(), recorder:
        net(torch.arange(float(count)))
    inline = recorder.ops[0].attr("input") == tuple(map(float, range(count)))
    assert (inline, len(recorder.tables)) == ((True, 0) if count == INLINE else (False, 1))


def test_a_component_may_be_moved_but_not_cast() -> None:
    net = nn.Linear(3, 3)
    with OpaqueComponents(Recorder(FAKES), ComponentCalls(), {"net": net}).recorded():
        assert net.to("cuda") is net and net.to(torch.float32) is net
        with pytest.raises(CaptureError, match=r"casts net to torch\.float16"):
            net.to(torch.float16)


def test_a_pipeline_may_ask_for_the_arguments_of_a_component() -> None:
    net = nn.Bilinear(3, 3, 2)
    with OpaqueComponents(Recorder(FAKES), ComponentCalls(), {"net": net}).recorded():
        assert list(inspect.signature(net.forward).parameters) == ["input1", "input2"]
