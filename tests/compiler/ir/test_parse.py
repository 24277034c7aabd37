"""What is printed is parsed; what is no program is refused with its line."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffc.compiler.errors import ParseError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import UNTYPED, Graph, Guard, Input, Op, Polynomial, Program, Ref, Table, Type, Value
from diffc.runtime.program.parse import RESERVED
from diffc.runtime.program.program import COMPARISONS

NAMES = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.]{0,5}\Z").filter(lambda name: name not in RESERVED)
NUMBERS = st.floats(allow_nan=False) | st.floats(allow_nan=False, width=32)
SHAPES = st.lists(st.integers(0, 255), max_size=4).map(tuple)
TENSORS = st.builds(Type, st.sampled_from(["float32", "int64", "bool"]), SHAPES)
VALUES = st.builds(Value, NAMES, TENSORS | st.just(UNTYPED))
LITERALS = st.recursive(
    st.builds(Ref, NAMES) | st.booleans() | st.integers() | NUMBERS | st.text() | st.none(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
MONOMIALS = st.lists(NAMES, max_size=2).map(lambda names: tuple(sorted(names)))
POLYNOMIALS = st.dictionaries(MONOMIALS, NUMBERS, max_size=3).map(Polynomial.of)


def few(items: st.SearchStrategy) -> st.SearchStrategy:
    """Draw up to three."""
    return st.lists(items, max_size=3).map(tuple)


INPUTS = st.builds(
    Input, NAMES, st.builds(Type, st.just("text"), SHAPES) | st.just(Type("scalar")), st.none() | NUMBERS
)
OPS = st.builds(Op, NAMES, few(LITERALS), few(st.tuples(NAMES, LITERALS)), few(POLYNOMIALS), few(VALUES))
PROGRAMS = st.builds(
    Program,
    NAMES,
    few(INPUTS),
    few(st.builds(Guard, NAMES, st.sampled_from(list(COMPARISONS)), NUMBERS)),
    few(st.builds(Graph, NAMES, few(VALUES), few(VALUES))),
    few(st.builds(Table, NAMES, TENSORS)),
    few(OPS),
    few(NAMES),
)


def same(one: Program, other: Program) -> bool:
    """Compare types as well: to Python, True is 1 and 1 is 1.0."""
    return one == other and repr(one) == repr(other)


@settings(max_examples=150, deadline=None)
@given(PROGRAMS)
def test_parsing_undoes_printing(program: Program) -> None:
    assert same(parse(str(program)), program)


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=st.sampled_from(list('programle(){}[];:,=<>!-+*"\\ \n.e0123 guardtbsfn')), max_size=60) | st.text()
)
@example("[" * 100_000)
@example("f(" + "[" * 100_000)
@example("f(" + "9" * 10_000 + ")")
@example("program p(x: scalar = " + "9" * 400 + ") { return x }")
@example("f(; " + "9" * 400 + ")")
@example('f("\\ud800")')
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        program = parse(text)
    except ParseError as error:
        assert error.where and re.match(r"line \d+: ", error.where)
    else:
        assert same(parse(str(program)), program)


@settings(max_examples=100, deadline=None)
@given(PROGRAMS, st.data())
def test_a_damaged_program_is_parsed_or_refused(program: Program, data: st.DataObject) -> None:
    text = str(program)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.sampled_from(["", "(", "=", ",", "1", "x", "\n"])) + text[at + 1 :]
    try:
        again = parse(damaged)
    except ParseError:
        return
    assert isinstance(again, Program)


PROGRAM = """program main(prompt: text[2], g: scalar = 7.5) {
    guard g > 1.0
    graph unet(sample: float32[2, 4], t: int64[]) -> (out: float32[2, 4])
    table t0: float32[4]
    n: float32[1, 4] = noise()
    x0: float32[2, 4] = concat(n, n, axis=0)
    y: float32[2, 4] = unet(sample=x0, t=999)
    u: float32[1, 4], c: float32[1, 4] = split(y, axis=0)
    x1: float32[1, 4] = linear(n, u, c, t0; 0.5, 1.0 + -1.0*g, 1.0*g, 2.0*g*g, 0.25)
    z: float32[1, 4] = aten.clamp.default(x1, [1, [-2.5e-07, true]], none, mode="a\\"b\\n")
    step(z; 1.0)
    return z
}
"""


def test_prints_the_text_that_it_read() -> None:
    assert str(parse(PROGRAM)) == PROGRAM


def test_reads_every_form_of_the_grammar() -> None:
    program = parse(PROGRAM)
    assert program.inputs == (Input("prompt", Type("text", (2,))), Input("g", Type("scalar"), 7.5))
    assert program.guards == (Guard("g", ">", 1.0),)
    assert program.ops[5].args == (Ref("x1"), (1, (-2.5e-07, True)), None)
    assert program.ops[5].attr("mode") == 'a"b\n'
    assert program.ops[4].coefficients[3] == Polynomial.of({("g", "g"): 2.0})


def test_an_image_is_an_input_of_its_own_kind() -> None:
    text = "program p(image: image[1, 3, 8, 8], embeds: float32[1, 3, 8, 8]) {\n    return image\n}\n"
    program = parse(text)
    assert [item.is_image for item in program.inputs] == [True, False]
    assert program.types()["image"] == program.types()["embeds"] == Type("float32", (1, 3, 8, 8))
    assert str(program) == text
    assert parse(text.replace(": image", ": picture")) == program, "as bundles of the schemas 1 and 2 write it"


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("g - 1", {("g",): 1.0, (): -1.0}),
        ("g -1", {("g",): 1.0, (): -1.0}),
        ("-g*h", {("g", "h"): -1.0}),
        ("2*h*g", {("g", "h"): 2.0}),
        ("g + g", {("g",): 2.0}),
        ("1 - -2", {(): 3.0}),
        ("inf", {(): math.inf}),
    ],
)
def test_polynomials_may_be_written_by_hand(text: str, terms: dict[tuple[str, ...], float]) -> None:
    assert parse(f"x = linear(a; {text})").ops[0].coefficients == (Polynomial.of(terms),)


def test_a_sketch_gets_its_inputs_and_outputs() -> None:
    program = parse("a = f(x)\nb = linear(a, z; 1.0, g)")
    assert [item.name for item in program.inputs] == ["x", "z", "g"]
    assert program.outputs == ("b",)


def test_types_are_printed_as_in_the_grammar() -> None:
    assert [str(t) for t in (Type("scalar"), Type("text", (2,)), Type("float32"))] == [
        "scalar",
        "text[2]",
        "float32[]",
    ]


HEAD = "program main() {\n"


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("a = f(x)\nb = g(x\nc = h(x)", "expected ')', found c", "line 3: c = h(x)"),
        ("a = f(x)\n  b @ c", "unexpected character '@'", "line 2: b @ c"),
        ("a = f(x)\nb = g(", "expected a name, found the end", "line 2: b = g("),
        ("program main(x) {}", "expected ':', found )", "line 1: program main(x) {}"),
        (f"{HEAD}guard g = 1\nreturn x }}", "expected a comparison, found =", "line 2: guard g = 1"),
        (f"{HEAD}guard g > x\nreturn x }}", "expected a number, found x", "line 2: guard g > x"),
        (f"{HEAD}graph f(x) (y)\nreturn x }}", "expected '->', found (", "line 2: graph f(x) (y)"),
        (f"{HEAD}table t: float32\nreturn x }}", "expected '[', found return", "line 3: return x }"),
        (f"{HEAD}table t: float32[1.5]\nreturn x }}", "expected an integer", "line 2: table t: float32[1.5]"),
        (f"{HEAD}table t: float32[-1]\nreturn x }}", "expected a shape of integers", "line 3: return x }"),
        (f"{HEAD}return x }} f(x)", "expected the end, found f", "line 2: return x } f(x)"),
        ('a = f("\\q")', "expected a string as JSON writes it", 'line 1: a = f("\\q")'),
        ("= f(x)", "expected a name, found =", "line 1: = f(x)"),
        (f"f({'[' * 9}", "expected lists nested at most 8 deep", f"line 1: f({'[' * 9}"),
        (f"f({'9' * 401})", "a number is too long", f"line 1: f({'9' * 198}"),
        (f"f(; {'9' * 400})", "a number is too large", f"line 1: f(; {'9' * 196}"),
    ],
)
def test_refuses_with_the_line(text: str, what: str, where: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert caught.value.what.startswith(f"program text: {what}")
    assert caught.value.where == where


def test_the_end_of_an_empty_text_has_a_line() -> None:
    with pytest.raises(ParseError, match="expected a name, found the end") as caught:
        parse("program")
    assert caught.value.where == "line 1: program"
