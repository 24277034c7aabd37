"""Each kind of input is declared with its type, and images alone as images."""

from __future__ import annotations

from diffc.compiler.ir.program import Input, Type
from diffc.compiler.tracing.request_inputs import Image, Number, Tensor, Text, declared


def test_inputs_are_declared_by_their_kind() -> None:
    assert declared("prompt", Text(2)) == Input("prompt", Type("text", (2,)))
    assert declared("scale", Number(7.5)) == Input("scale", Type("scalar"), 7.5)
    assert declared("image", Image((1, 3, 4, 4))) == Input("image", Type("float32", (1, 3, 4, 4)), is_image=True)
    assert declared("embeds", Tensor((1, 7))) == Input("embeds", Type("float32", (1, 7)), is_image=False)
