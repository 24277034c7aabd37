"""Define a bundle whose sizes the request decides, and compute in NumPy what it returns; program texts with lengths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.format.authoring import Array, Case, Request
from tests.format.program_cases import EXECUTABLE, NORMAL_FORM, REFUSED
from tests.runtime.conftest import HIDDEN, word_tokenizer

PROGRAM = """program p(prompt: text[1], negative_prompt: text[1]) {
    length L0 from 3 to 6
    length L1 from 2 to 6
    length L2 from 1 to 6
    graph encoder(ids: int64[1, L2]) -> (hidden: float32[1, L2, 4])
    graph last(text: float32[1, L0 + L1 + 1, 4], count: int64[]) -> (end: float32[1, L0 - 2, 4])
    graph mean(text: float32[1, 2*L2 - 1, 4], factor: float32[1, 2*L2 - 1, 1]) -> (y: float32[1, 1, 4])
    table start: float32[1, 1, 4]
    i: int64[1, L0], m: int32[1, L0] = tokenize(prompt, tokenizer="words", length=6, pad=1, count="L0", \
padding_side="left")
    j: int64[1, L1] = tokenize(negative_prompt, tokenizer="words", length=6, pad=1, count="L1", truncation_side="left")
    f: int64[1, 6] = tokenize(prompt, tokenizer="words", length=6, pad=1, count="L2")
    a: float32[1, L0, 4] = encoder(ids=i)
    b: float32[1, L1, 4] = encoder(ids=j)
    c: float32[1, 6, 4] = encoder(ids=f)
    all: float32[1, L0 + L1 + 1, 4] = concat(a, start, b, axis=1)
    e: float32[1, L0 - 2, 4] = last(text=all, count=L0)
    twice: float32[1, 2*L1, 4] = concat(b, b, axis=1)
    b0: float32[1, L1, 4], b1: float32[1, L1, 4] = split(twice, axis=1)
    d: float32[1, L1, 4] = linear(b0, b1, L0, start; 1.0, 0.5, 0.25, 1.0)
    d1: float32[1, 2*L1 - 1, 4] = odd(x=d, y=d)
    k: float32[1, 2*L0 - 1, 4] = odd(x=a, y=a)
    y0: float32[1, 1, 4] = mean(text=d1, factor=1)
    y1: float32[1, 1, 4] = mean(text=k, factor=0.5)
    y2: float32[1, 1, 4] = total(x=e)
    y3: float32[1, 1, 4] = total(x=c)
    n: float32[1] = linear(L0, L1, L2; 1.0, 10.0, 100.0)
    y: float32[1, 4, 4] = concat(y0, y1, y2, y3, axis=1)
    z: float32[1, 4, 4] = linear(y, n; 1.0, 1.0)
    return z, L0
}
""".replace(
    "    table start",
    """    graph odd(x: float32[1, L2, 4], y: float32[1, L2, 4]) -> (z: float32[1, 2*L2 - 1, 4])
    graph total(x: float32[1, L2, 4]) -> (y: float32[1, 1, 4])
    table start""",
)

TABLE = ", ".join(str(float(value)) for value in HIDDEN.ravel())

GRAPHS = {
    "encoder": f"g (int64[1,N] ids) => (float[1,N,4] hidden) <float[8,4] table = {{{TABLE}}}> "
    "{ hidden = Gather(table, ids) }",
    "last": """g (float[1,N,4] text, int64 count) => (float[1,M,4] end)
    <int64 two = {2}, int64[1] axis = {1}, int64[1] shape = {1}, int64[1] stop = {1000}>
    { less = Sub(two, count) start = Reshape(less, shape) end = Slice(text, start, stop, axis) }""",
    "odd": """g (float[1,N,4] x, float[1,N,4] y) => (float[1,M,4] z)
    <int64[1] one = {1}, int64[1] stop = {1000}, int64[1] axis = {1}>
    { less = Slice(y, one, stop, axis) z = Concat<axis=1>(x, less) }""",
    "mean": """g (float[1,N,4] text, float[1,N,1] factor) => (float[1,1,4] y) <int64[1] axis = {1}>
    { scaled = Mul(text, factor) y = ReduceMean<keepdims=1>(scaled, axis) }""",
    "total": "g (float[1,N,4] x) => (float[1,1,4] y) <int64[1] axis = {1}> { y = ReduceSum<keepdims=1>(x, axis) }",
}

START = np.array([[[0.5, -1, 2, 4]]], np.float32)


def length_cases() -> Iterator[Case]:
    """Yield the bundle with lengths."""
    prompts = {
        "one word": ("red", "", [0, 3, 1], [0, 1]),
        "two words and one": ("red circle", "blue", [0, 3, 5, 1], [0, 4, 1]),
        "four words fill the length": ("red circle blue square", "small red", [0, 3, 5, 4, 6, 1], [0, 7, 3, 1]),
        "more words are cut": (
            "red circle blue square red",
            "small red red blue square",
            [0, 3, 5, 4, 6, 1],
            [0, 3, 3, 4, 6, 1],
        ),
    }
    requests = [
        Request(name, {"prompt": prompt, "negative_prompt": negative}, result(ids, no))
        for name, (prompt, negative, ids, no) in prompts.items()
    ]
    first, second = prompts["one word"], prompts["more words are cut"]
    both = {"prompt": [first[0], second[0]], "negative_prompt": [first[1], second[1]]}
    requests += [
        Request("two texts of different lengths", both, np.concatenate([result(*first[2:]), result(*second[2:])])),
        Request("fewer tokens than the least", {"prompt": ""}, refused="request"),
    ]
    yield Case("lengths", {"p": PROGRAM}, requests, GRAPHS, {"start": START}, {"words": word_tokenizer()})


def result(ids: list[int], negative: list[int]) -> Array:
    """Compute what the program returns for the tokens of two texts."""
    a, b, c = (HIDDEN[np.array(tokens)][None] for tokens in (ids, negative, [*ids, *[1] * (6 - len(ids))]))
    joined = np.concatenate([a, START, b], axis=1)
    d = 1.5 * b + 0.25 * len(ids) + START
    odd = [np.concatenate([x, x[:, 1:]], axis=1) for x in (d, a)]
    parts = [odd[0].mean(axis=1), 0.5 * odd[1].mean(axis=1), joined[:, 2 - len(ids) :].sum(axis=1), c.sum(axis=1)]
    return np.stack(parts, axis=1) + np.float32(len(ids) + 10 * len(negative) + 100 * len(ids))


CHANGES: tuple[tuple[str, str, str, str], ...] = (
    ("sizes that the request decides", EXECUTABLE, "L0", "L0"),
    ("a length named length", EXECUTABLE, "L1", "length"),
    (
        "a size with its constant in front",
        EXECUTABLE,
        "float32[1, L0 + L1 + 1, 4] = c",
        "float32[1, 1 + L1 + 1*L0, 4] = c",
    ),
    ("a size with minus", EXECUTABLE, "(text: float32[1, 2*L2 - 1, 4], f", "(text: float32[1, -1 + L2+L2, 4], f"),
    (
        "a size with a minus alone",
        EXECUTABLE,
        "(text: float32[1, 2*L2 - 1, 4], f",
        "(text: float32[1, - 1 + 2 * L2, 4], f",
    ),
    ("a factor behind its length", REFUSED, "float32[1, 2*L2 - 1, 4], f", "float32[1, L2*2 - 1, 4], f"),
    ("a product of lengths", REFUSED, "float32[1, 2*L2 - 1, 4], f", "float32[1, L2*L2, 4], f"),
    ("a factor with a point", REFUSED, "float32[1, 2*L2 - 1, 4], f", "float32[1, 2.0*L2 - 1, 4], f"),
    ("a length without bounds", REFUSED, "length L0 from 3 to 6", "length L0"),
    ("a length before a guard", REFUSED, "    graph enc", "    guard g > 1.0\n    graph enc"),
    ("bounds in the wrong order", REFUSED, "from 3 to 6", "from 6 to 3"),
    ("a least length below zero", REFUSED, "L2 from 1", "L2 from -1"),
    ("two lengths of one name", REFUSED, "length L1 from", "length L0 from"),
    ("a length that is not declared", REFUSED, "k: float32[1, 2*L0 - 1, 4]", "k: float32[1, 2*L3 - 1, 4]"),
    ("a value with the name of a length", REFUSED, "n: float32[1] =", "L0: float32[1] ="),
    ("a size below zero", REFUSED, "end: float32[1, L0 - 2, 4]", "end: float32[1, L0 - 4, 4]"),
    ("a size above 2^32", REFUSED, "end: float32[1, L0 - 2, 4]", "end: float32[1, 1000000000*L0, 4]"),
    ("a table of an open size", REFUSED, "table start: float32[1, 1, 4]", "table start: float32[1, L0, 4]"),
    ("an input of an open size", REFUSED, "p(prompt", "p(x: float32[1, L0], prompt"),
    ("noise of an open size", REFUSED, "    n: float32[1] =", "    o: float32[1, L0] = noise()\n    n: float32[1] ="),
    ("a step of an open size", REFUSED, "    n: float32[1] =", "    step(a; 1.0)\n    n: float32[1] ="),
    ("a first output of an open size", NORMAL_FORM, "return z, L0", "return a"),
    ("a second output of an open size", EXECUTABLE, "return z, L0", "return z, a"),
    ("a length that is read before it is counted", REFUSED, "return z, L0", "return z, L4"),
    ("a length that nothing counts", EXECUTABLE, "    graph enc", "    length L3 from 1 to 2\n    graph enc"),
    ("a length counted twice", REFUSED, 'count="L1"', 'count="L0"'),
    ("a count of no length", REFUSED, 'count="L1"', 'count="L3"'),
    ("a count that is a name", REFUSED, 'count="L1"', "count=L1"),
    ("a most length above that of the text", REFUSED, "L1 from 2 to 6", "L1 from 2 to 7"),
    ("ids of another length", REFUSED, "j: int64[1, L1]", "j: int64[1, L0]"),
    ("a mask of another shape", REFUSED, "m: int32[1, L0]", "m: int32[1, 6]"),
    ("a fixed mask of open ids", REFUSED, "i: int64[1, L0], m: int32[1, L0]", "i: int64[1, L0], m: int32[1, 6]"),
    ("a result of another length", REFUSED, "b: float32[1, L1, 4] = enc", "b: float32[1, L0, 4] = enc"),
    ("a length out of a graph's bounds", REFUSED, "L2 from 1", "L2 from 3"),
    ("a part that is no equal part", REFUSED, "b0: float32[1, L1, 4]", "b0: float32[1, L0, 4]"),
    ("terms of different lengths", REFUSED, "linear(b0, b1,", "linear(b0, a,"),
    ("a list for a port of an open size", REFUSED, "factor=1)", "factor=[[[1]]])"),
)
"""Changes of the program: a name, the highest level that accepts the result, the old text and the new one."""


def length_texts() -> Iterator[tuple[str, str, str]]:
    """Yield the name of each case, the highest level that accepts it, and its text."""
    for name, level, old, new in CHANGES:
        assert old in PROGRAM, name
        yield name, level, PROGRAM.replace(old, new)
