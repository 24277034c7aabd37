"""What is legal at each level: a runtime executes less than a compiler rewrites. `test_verify` has the rules of all."""

from __future__ import annotations

import pytest

from diffc.runtime.errors import VerifyError
from diffc.runtime.program.parse import read_program
from diffc.runtime.program.verify import Level, verify
from tests.format.program_cases import PROGRAM


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # Inputs and declarations.
        ("prompt: text[2]", "prompt: text[2] = 1", "input prompt has a default and is no scalar"),
        ("prompt: text[2]", "prompt: image[2, 3]", "input prompt is no image"),
        ("prompt: text[2]", "prompt: image[2, 4, 8, 8]", "input prompt is no image, grey or in colour"),
        ("h: scalar)", "h: scalar, e: float32[4, 3])", "e is not one for each of 2 images"),
        # Operations.
        ("n: float32[2, 3, 2, 2] = noise", "n: float32[1, 3, 2, 2] = noise", "n is not one for each of 2 images"),
        ("linear(n,", "linear(g,", "an operand of linear is no tensor"),
        ("step(x; 2.0)", "step(x, y; 2.0, 1.0)", "the operands of step differ in shape"),
        ("split(y, axis=0)", "split(y, axis=true)", "axis is True"),
        ("f(ids=ids,", "f(ids=prompt,", "port ids takes"),
        ('tokenizer="words"', 'tokenizer="letters"', "unknown tokenizer 'letters'"),
        ("length=8", "length=0", "length is 0"),
        ("pad=1", "pad=-1", "pad is -1"),
        ("pad=1", "pad=1.0", "pad is 1.0"),
        ('"a \\"{}\\""', '"a"', "template is 'a'"),
        ("mask: int32[2, 8]", "mask: bool[2, 8]", "mask does not hold integers"),
        ("return c, mask", "return mask, c", r"the first output is int32\[2, 8\], no batch"),
        ("return c, mask", "return y", "no row for each of 2 images"),
        ("return c, mask", "return c, g", "the program returns g, which is no tensor"),
    ],
)
def test_refuses_to_execute(old: str, new: str, message: str) -> None:
    assert old in PROGRAM
    with pytest.raises(VerifyError, match=message):
        verify(read_program(PROGRAM.replace(old, new)), Level.EXECUTABLE, tokenizers=["words"])


SMALL = """program small(prompt: text[1]) {
    ids: int64[1, 4] = tokenize(prompt, tokenizer="words", length=4, pad=0)
    n: float32[1, 4] = noise()
    a: float32[1, 2], b: float32[1, 2] = split(n, axis=1)
    x: float32[1, 2] = linear(a, b; 0.5, 2.0)
    step(x; 1.0)
    return x, ids
}
"""
PROBES: dict[str, tuple[str, str, Level | None]] = {
    # A part of the program, its replacement, and the last level at which that is legal; None where it never is.
    "a bfloat16 value": ("    step", '    h: bfloat16[1, 2] = aten.to.dtype(x, "bfloat16")\n    step', Level.TRACED),
    "an operator of ATen": ("    step", "    h: float32[1, 2] = aten.abs.default(x)\n    step", Level.TRACED),
    "tokenize with a padding": ("pad=0", 'pad=0, padding="True"', None),
    "step of what does not broadcast": ("step(x; 1.0)", "step(x, n; 1.0, 1.0)", None),
    "step with an attribute": ("step(x; 1.0)", "step(x, at=1; 1.0)", None),
    "noise with an attribute": ("noise()", "noise(seed=1)", None),
    "linear of a text": ("linear(a, b;", "linear(a, prompt;", None),
    "a text of another batch than the output": (
        "prompt: text[1]",
        "prompt: text[1], style: text[2]",
        Level.NORMAL_FORM,
    ),
    "noise of no multiple of the output's batch": (
        "    x:",
        "    m: float32[0, 4] = noise()\n    x:",
        Level.NORMAL_FORM,
    ),
    "a negative axis": ("axis=1", "axis=-1", None),
    "int32 ids": ("ids: int64", "ids: int32", Level.EXECUTABLE),
    "an int16 port": ("    ids", "    graph f(a: int16[4]) -> (b: int16[4])\n    ids", Level.EXECUTABLE),
}


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("level", Level)
def test_a_probe_is_legal_up_to_its_level(probe: str, level: Level) -> None:
    old, new, last = PROBES[probe]
    assert SMALL.count(old) == 1
    program = read_program(SMALL.replace(old, new))
    if last is not None and level <= last:
        assert verify(program, level) is program
    else:
        with pytest.raises(VerifyError):
            verify(program, level)
