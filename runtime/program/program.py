"""Define the program: a straight line of operations on named values. Its text is normative (docs/program-format.md).

    program     = "program" NAME "(" [input {"," input}] ")" "{" {guard} {length} {graph} {table} {operation}
                  "return" [NAME {"," NAME}] "}"
    input       = NAME ":" type ["=" NUMBER] | NAME ":" "image" shape
    guard       = "guard" NAME ("<" | "<=" | ">" | ">=" | "==" | "!=") NUMBER
    length      = "length" NAME "from" INTEGER "to" INTEGER
    graph       = "graph" NAME "(" [value {"," value}] ")" "->" "(" [value {"," value}] ")"
    table       = "table" NAME ":" type
    operation   = [value {"," value} "="] NAME "(" [argument {"," argument}] [";" polynomial {"," polynomial}] ")"
    value       = NAME ":" type
    argument    = [NAME "="] literal
    literal     = NAME | NUMBER | STRING | "true" | "false" | "none" | "[" [literal {"," literal}] "]"
    polynomial  = ["-"] term {("+" | "-") term | NEGATIVE {"*" NAME}}
    term        = NUMBER {"*" NAME} | NAME {"*" NAME}
    type        = DTYPE shape | "text" "[" INTEGER "]" | "scalar"
    shape       = "[" [size {"," size}] "]"
    size        = ["-"] extent {("+" | "-") extent | NEGATIVE ["*" NAME]}
    extent      = INTEGER ["*" NAME] | NAME

    NAME        = a letter or "_", then letters, digits, "_" and "."
    NUMBER      = ["-"] (DIGITS ["." DIGITS] ["e" ["+" | "-"] DIGITS] | "inf" | "nan"); NEGATIVE starts with "-"
    STRING      = a string of JSON

A program stands for one call of a sampler. Its inputs are texts, scalars, images in [0, 1], which operations read as
float32[batch, channels, height, width], and other tensors; its lengths are numbers of tokens that the request decides,
of which sizes of shapes are affine functions; its graphs are pure tensor functions, called by port; its tables are
constant tensors. An operator is the name of a graph or one of `BUILTINS`. The compiler also writes
programs that a runtime refuses: with operators of ATen such as ``aten.mul.Tensor``, and sketches without types.

    t = lower(prompt)                          a text of the texts; `texts.py` lists what changes a text
    ids, mask = tokenize(t, tokenizer="tokenizer", length=77, pad=0)         the mask is 1 where the text is
    ids = tokenize(t, tokenizer="tokenizer", length=77, pad=0, count="L0")   L0 is how many tokens the text has
    n = noise()                                the next sample of the seed's normal distribution, in program order
    n = noise(kind="integers", low=0, high=9)  the next values of another distribution; `NOISE_KINDS` lists them
    n = noise(separate=true)                   noise of a generator apart, which shifts no other noise of the seed
    n = noise(pool=24, terms=[[0.5, 0, 3]])    0.5 times noise of the seed that is word 0 of those spawned with key (3)
    x = linear(a, b; 0.5, guidance_scale)      0.5·a + guidance_scale·b; one coefficient more is a constant term
    u, c = split(y, axis=0)                    equal parts
    y = concat(u, c, axis=0)
    step(x; 2.0)                               a step of the sampler is done; its latents are linear(x; 2.0)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import SupportsInt

from diffc.runtime.errors import VerifyError
from diffc.runtime.program.polynomial import Polynomial
from diffc.runtime.program.size import AnySize, Size, bind
from diffc.runtime.program.texts import TEXT_OPERATORS

NOISE_KINDS: dict[str, tuple[str, ...]] = {
    "normal": ("float32",),
    "uniform": ("float32", "float64"),
    "exponential": ("float32",),
    "integers": ("int64",),
}
"""The element types of each kind of noise."""

BUILTINS = ("tokenize", "noise", "linear", "split", "concat", "step", *TEXT_OPERATORS)
DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
FLOATS = ("float64", "float32", "float16", "bfloat16")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@dataclass(frozen=True)
class Type:
    """Describe a tensor, a batch of texts (dtype ``text``) or a scalar of the request (dtype ``scalar``).

    A size of the shape is *open* where the lengths of the request decide it.
    """

    dtype: str
    shape: tuple[AnySize, ...] = ()

    @property
    def is_float(self) -> bool:
        """Return whether the elements are floating-point numbers."""
        return self.dtype in FLOATS

    @property
    def lengths(self) -> tuple[str, ...]:
        """Return the names of the lengths that decide the shape, with repetition."""
        return tuple(name for size in self.shape if isinstance(size, Size) for name in size.lengths)

    @property
    def fixed(self) -> tuple[int, ...]:
        """Return the shape for code that serves fixed sizes only. Raises `VerifyError` where a size is open."""
        sizes = tuple(size for size in self.shape if isinstance(size, int))
        if len(sizes) < len(self.shape):
            fix = "leave out the option or the technique that needs fixed sizes, or build for ort-fp32 or ov-fp32"
            raise VerifyError(f"each request decides a size of {self}, and only fixed sizes are served here", fix=fix)
        return sizes

    def at(self, lengths: Mapping[str, SupportsInt]) -> Type:
        """Return the type for the lengths of a request."""
        return self.replaced({name: int(lengths[name]) for name in self.lengths})

    def replaced(self, sizes: Mapping[str, AnySize]) -> Type:
        """Replace lengths by sizes; lengths without one stay."""
        shape = tuple(size.replaced(sizes) if isinstance(size, Size) else size for size in self.shape)
        return Type(self.dtype, shape) if self.lengths else self

    def __str__(self) -> str:
        return "scalar" if self.dtype == "scalar" else f"{self.dtype}{list(self.shape)}"


SCALAR = Type("scalar")
UNTYPED = Type("")
"""The type of a value in a sketch that does not state one."""


@dataclass(frozen=True)
class Value:
    """Name a value and its type."""

    name: str
    type: Type = UNTYPED

    def __str__(self) -> str:
        return self.name if self.type == UNTYPED else f"{self.name}: {self.type}"


@dataclass(frozen=True)
class Ref:
    """Refer to a value by its name."""

    name: str


Literal = Ref | bool | int | float | str | None | Size | tuple["Literal", ...]


@dataclass(frozen=True)
class Op:
    """Apply an operator; the grammar defines its arguments. ``line`` is where it was read, 0 if it was not."""

    operator: str
    args: tuple[Literal, ...] = ()
    attrs: tuple[tuple[str, Literal], ...] = ()
    coefficients: tuple[Polynomial, ...] = ()
    results: tuple[Value, ...] = ()
    line: int = field(default=0, compare=False, repr=False)

    def attr(self, name: str, default: Literal = None) -> Literal:
        """Return a keyword argument."""
        return dict(self.attrs).get(name, default)

    def operands(self) -> Iterator[str]:
        """Yield the names of the values in arguments, in order, with repetition."""
        for literal in (*self.args, *(value for _, value in self.attrs)):
            yield from _names(literal)

    def reads(self) -> Iterator[str]:
        """Yield the names of the operands, then those of the scalars in coefficients, with repetition."""
        yield from self.operands()
        for coefficient in self.coefficients:
            for names, _ in coefficient.terms:
                yield from names

    def defines(self) -> Iterator[str]:
        """Yield the names of the results, and of the length that the operation counts."""
        yield from (value.name for value in self.results)
        if isinstance(length := self.attr("count"), str) and self.operator == "tokenize":
            yield length

    def renamed(self, names: Mapping[str, str]) -> Op:
        """Replace the names of operands."""
        return replace(
            self,
            args=tuple(_renamed(a, names) for a in self.args),
            attrs=tuple((key, _renamed(value, names)) for key, value in self.attrs),
        )

    @property
    def where(self) -> str:
        """Return the text of the operation, and the line that it was read from, for an error."""
        return f"line {self.line}: {self}"[:200] if self.line else str(self)

    def __str__(self) -> str:
        arguments = ", ".join([*map(_text, self.args), *(f"{key}={_text(value)}" for key, value in self.attrs)])
        coefficients = f"; {_listed(self.coefficients)}" if self.coefficients else ""
        call = f"{self.operator}({arguments}{coefficients})"
        return f"{_listed(self.results)} = {call}" if self.results else call


@dataclass(frozen=True)
class Input:
    """Declare an input of the request: ``text[batch]``, a scalar with its default, an image in [0, 1], or a tensor."""

    name: str
    type: Type
    default: float | None = None
    is_image: bool = False

    def __str__(self) -> str:
        default = "" if self.default is None else f" = {self.default!r}"
        type_ = f"image{list(self.type.shape)}" if self.is_image else str(self.type)
        return f"{self.name}: {type_}{default}"


@dataclass(frozen=True)
class Guard:
    """State the condition under which the program computes the same as the pipeline."""

    scalar: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.scalar} {self.comparison} {self.bound!r}"

    def holds(self, scalars: Mapping[str, float]) -> bool:
        """Return whether the scalars of a request meet the condition."""
        return self.scalar in scalars and COMPARISONS[self.comparison](scalars[self.scalar], self.bound)


@dataclass(frozen=True)
class Length:
    """Declare a number of tokens that each request decides, and its bounds."""

    name: str
    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.name} from {self.least} to {self.most}"


LENGTH = Type("int64")
"""The type of a length where an operation reads it."""


@dataclass(frozen=True)
class Graph:
    """Declare a pure tensor function by its ports. Lengths in their shapes stand for those of each call."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{self.name}({_listed(self.inputs)}) -> ({_listed(self.outputs)})"


@dataclass(frozen=True)
class Program:
    """Hold one sampler, from the texts of a request to its images, videos, audio or other tensors.

    ``str`` prints it, `diffc.runtime.program.parse.read_program` reads it back.
    """

    name: str
    inputs: tuple[Input, ...] = ()
    guards: tuple[Guard, ...] = ()
    graphs: tuple[Graph, ...] = ()
    tables: tuple[Value, ...] = ()
    ops: tuple[Op, ...] = ()
    outputs: tuple[str, ...] = ()
    lengths: tuple[Length, ...] = ()

    def __str__(self) -> str:
        lines = [f"program {self.name}({_listed(self.inputs)}) {{"]
        lines += [f"    guard {guard}" for guard in self.guards]
        lines += [f"    length {length}" for length in self.lengths]
        lines += [f"    graph {graph}" for graph in self.graphs]
        lines += [f"    table {table}" for table in self.tables]
        lines += [f"    {op}" for op in self.ops]
        return "\n".join([*lines, f"    return {', '.join(self.outputs)}", "}"]) + "\n"

    @property
    def texts(self) -> tuple[Input, ...]:
        """List the texts of a request."""
        return tuple(item for item in self.inputs if item.type.dtype == "text")

    @property
    def scalars(self) -> Mapping[str, float | None]:
        """Map the scalars of a request to their defaults."""
        return {item.name: item.default for item in self.inputs if item.type.dtype == "scalar"}

    @property
    def arrays(self) -> tuple[Input, ...]:
        """List the images, [batch, channels, height, width], and the other tensors of a request."""
        return tuple(item for item in self.inputs if item.type.dtype not in ("text", "scalar"))

    @property
    def noises(self) -> tuple[Value, ...]:
        """List the samples of the normal distribution, in order."""
        return tuple(op.results[0] for op in self.ops if op.operator == "noise")

    def types(self) -> dict[str, Type]:
        """Map every value to its type."""
        declared = {item.name: item.type for item in self.inputs} | {table.name: table.type for table in self.tables}
        declared |= {length.name: LENGTH for length in self.lengths}
        return declared | {value.name: value.type for op in self.ops for value in op.results}

    @property
    def batch(self) -> int:
        """Return the number of images of one execution: of rows of its texts and arrays, or of its first output."""
        return next((item.type.fixed[0] for item in (*self.texts, *self.arrays)), self.rows)

    @property
    def rows(self) -> int:
        """Return the number of rows of the first output: an image of one execution has one of them, or several."""
        return self.types()[self.outputs[0]].fixed[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """Return the width and height of the first output in pixels; None if it is no image."""
        shape = self.types()[self.outputs[0]].fixed
        return (shape[-1], shape[-2]) if is_image(shape) else None


def is_image(shape: Sequence[int]) -> bool:
    """Return whether an output [N, C, H, W] or [N, F, C, H, W] is an image or a video: grey or in colour."""
    return len(shape) in (4, 5) and shape[-3] in (1, 3)


def sizes_of_call(op: Op, graph: Graph, shapes: Mapping[str, Sequence[AnySize]]) -> dict[str, AnySize]:
    """Return the sizes that the lengths of a graph stand for in a call, where ``shapes`` are those of values.

    A length that no size of an argument binds stands for itself.
    """
    arguments = dict(op.attrs)
    pairs = [(port.type.shape, arguments[port.name]) for port in graph.inputs if port.type.lengths]
    return bind(
        pair
        for shape, argument in pairs
        if isinstance(argument, Ref)
        for pair in zip(shape, shapes[argument.name], strict=False)
    )


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))


def _names(literal: Literal) -> Iterator[str]:
    if isinstance(literal, Ref):
        yield literal.name
    elif isinstance(literal, tuple):
        for item in literal:
            yield from _names(item)


def _renamed(literal: Literal, names: Mapping[str, str]) -> Literal:
    if isinstance(literal, Ref):
        return Ref(names.get(literal.name, literal.name))
    if isinstance(literal, tuple):
        return tuple(_renamed(item, names) for item in literal)
    return literal


def _text(literal: Literal) -> str:
    match literal:
        case Ref(name):
            return name
        case tuple():
            return f"[{', '.join(map(_text, literal))}]"
        case None | bool():
            return str(literal).lower()
        case str():
            return json.dumps(literal)
        case _:
            return repr(literal)
