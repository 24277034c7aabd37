"""Define bundles that show what each operation computes; NumPy and ONNX's reference evaluator compute the results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import save as save_torch

from tests.format.authoring import Array, Case, Request, model

ONNX = {
    "float64": "double",
    "float32": "float",
    "float16": "float16",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint8": "uint8",
    "bool": "bool",
}
"""How ONNX's text names the element types of a program."""


def operation_cases() -> Iterator[Case]:
    """Yield the bundles whose operations differ; each has one request."""
    yield from (dtypes(), bfloat16(), linear(), polynomials(), split_and_concat(), ports(), quantized())


def one_request(result: Array, **inputs: object) -> list[Request]:
    """Expect one result of a program that needs nothing."""
    return [Request("defaults", inputs, result, exact=True)]


def dtypes() -> Case:
    """Pass every element type from tables, from literals and from results to the ports of a graph."""
    names = list(ONNX)
    declared = ", ".join(f"{name}_: {name}[2]" for name in names)
    inputs = ", ".join(f"{ONNX[name]}[2] {name}_" for name in names)
    casts = " ".join(f"f_{name} = Cast<to=1>({name}_) r_{name} = Reshape(f_{name}, shape)" for name in names)
    same = " ".join(f"{name}_out = Identity({name}_)" for name in names)
    outputs = ", ".join(f"{ONNX[name]}[2] {name}_out" for name in names)
    text = (
        f"g ({inputs}) => (float[1,9,2] y, {outputs}) <int64[3] shape = {{1, 1, 2}}> "
        f"{{ {casts} y = Concat<axis=1>({', '.join(f'r_{name}' for name in names)}) {same} }}"
    )
    results = [", ".join(f"{name}{at}: {name}[2]" for name in names) for at in range(3)]
    literals = {
        "float64": "[1e-300, -1.5]",
        "float32": "0.1",
        "float16": "[65504, 1e-07]",
        "int64": "-9007199254740993",
        "int32": "[2147483647, -2147483648]",
        "int16": "-32768",
        "int8": "[-128, 127]",
        "uint8": "[255, 0]",
        "bool": "[true, false]",
    }
    calls = [
        ", ".join(f"{name}_=t_{name}" for name in names),
        ", ".join(f"{name}_={literals[name]}" for name in names),
        ", ".join(f"{name}_={name}0" for name in reversed(names)),
    ]
    program = "\n".join(
        [
            "program p() {",
            f"    graph f({declared}) -> (y: float32[1, 9, 2], {', '.join(f'{n}_out: {n}[2]' for n in names)})",
            *(f"    table t_{name}: {name}[2]" for name in names),
            *(f"    y{at}: float32[1, 9, 2], {results[at]} = f({calls[at]})" for at in range(3)),
            "    y: float32[1, 27, 2] = concat(y0, y1, y2, axis=1)",
            "    return y",
            "}\n",
        ]
    )
    tables = {
        f"t_{n}": np.array([at + 1, 1 - at if n not in ("uint8", "bool") else 0], n) for at, n in enumerate(names)
    }
    first = np.stack([tables[f"t_{name}"].astype(np.float32) for name in names])
    words = {"true": True, "false": False}
    values = {name: eval(text, words) for name, text in literals.items()}
    second = np.stack([np.broadcast_to(np.array(values[name], name), 2).astype(np.float32) for name in names])
    return Case(
        "dtypes", {"p": program}, one_request(np.concatenate([first, second, first])[None]), {"f": text}, tables
    )


def bfloat16() -> Case:
    """Widen a table that is stored in bfloat16: programs see it as float32."""
    text = "program p() {\n    table t: float32[1, 3]\n    y: float32[1, 3] = linear(t; 1.0)\n    return y\n}\n"
    stored = torch.tensor([[1.0, -0.0078125, 3.140625]], dtype=torch.bfloat16)
    return Case("bfloat16", {"p": text}, one_request(stored.float().numpy()), tables=save_torch({"t": stored}))


def linear() -> Case:
    """Add in the order of the operands, in float32 or float64; broadcast, convert, round to the result's type."""
    lines = [
        "y0: float32[1, 3, 4] = linear(p, q; 3.0, 1.0, 0.125)",
        "y1: float32[1, 3, 4] = linear(p, p, p; 1e8, 1.0, -1e8)",
        "y2: float32[1, 3, 4] = linear(p, p, p; 1e8, -1e8, 1.0)",
        "y3: float32[1, 3, 4] = linear(d, e; 1e8, -1e8)",
        "w4: float64[1, 3, 4] = linear(p, p; 0.1, 1e-12)",
        "y4: float32[1, 3, 4] = linear(w4, p; 1e8, -1e7)",
        "w5: float16[1, 3, 4] = linear(p, h; 1000.3, 0.7)",
        "y5: float32[1, 3, 4] = linear(w5; 1.0)",
        "y6: float32[1, 3, 4] = linear(i, u; 0.5, 1.0)",
        "y7: float32[1, 3, 4] = linear(; 0.1)",
        "y8: float32[1, 3, 4] = linear(i, b; 1e-30, 2.0, -0.1)",
    ]
    tables = {
        "p": np.array([[1], [2], [-3]], np.float32),
        "q": np.array([0.1, 1e-9, -7, 1e9], np.float32),
        "d": np.linspace(1, 2, 12, dtype=np.float64).reshape(3, 4) + 1e-9,
        "e": np.linspace(1, 2, 12, dtype=np.float64).reshape(3, 4),
        "h": np.linspace(-1, 1, 12, dtype=np.float16).reshape(3, 4),
        "i": np.array([2**24 + 1], np.int64),
        "u": np.array([[[255], [0], [7]]], np.uint8),
        "b": np.array([True, False, True, True]),
    }
    declared = [f"table {name}: {array.dtype}{list(array.shape)}" for name, array in tables.items()]
    joined = f"y: float32[1, 27, 4] = concat({', '.join(f'y{at}' for at in range(9))}, axis=1)"
    text = "\n    ".join(["program p() {", *declared, *lines, joined, "return y"]) + "\n}\n"
    one, wide, f = np.float32, np.float64, {name: array.astype(np.float32) for name, array in tables.items()}
    p, zero = f["p"], np.zeros((3, 4), np.float32)
    w4 = wide(0.1) * wide(p) + wide(1e-12) * wide(p)
    results = [
        (one(0.125) + one(3) * p) + f["q"],
        (zero + one(1e8) * p + p) + one(-1e8) * p,
        (zero + one(1e8) * p + one(-1e8) * p) + p,
        (1e8 * tables["d"] + -1e8 * tables["e"]).astype(np.float32),
        (1e8 * w4 + -1e7 * wide(p) + np.zeros((3, 4))).astype(np.float32),
        (one(1000.3) * p + one(0.7) * f["h"]).astype(np.float16).astype(np.float32),
        one(0.5) * f["i"] + f["u"][0] + zero,
        zero + one(0.1),
        (one(-0.1) + one(1e-30) * f["i"]) + one(2) * f["b"] + zero,
    ]
    return Case("linear", {"p": text}, one_request(np.concatenate(results)[None]), tables=tables)


def polynomials() -> Case:
    """Evaluate coefficients at the scalars of the request, in float64, and round them to the sum's type."""
    text = """program p(a: scalar = 2.0, b: scalar = -3.0) {
    table t: float32[1, 3]
    table d: float64[1, 3]
    y0: float32[1, 3] = linear(t; a*b + -0.5*a - b, 1.0 + 0.25*b*b)
    y1: float32[1, 3] = linear(t, t; -a, 2.0*a*a*b - 1.0, 0.001 - a)
    y2: float32[1, 3] = linear(d, t; 16777217.0 + a, 0.1*b)
    y3: float32[1, 3] = linear(d; -1e16*b*b + 1e16*a + 3.0*a*b)
    y: float32[1, 12] = concat(y0, y1, y2, y3, axis=1)
    return y
}
"""
    t, d = np.array([[0.5, -1, 4]], np.float32), np.array([[1e-9, 0.3, -2]])

    def result(a: float, b: float) -> Array:
        one = np.float32
        y0 = one(1.0 + 0.25 * b * b) + one(a * b + -0.5 * a - b) * t
        y1 = (one(0.001 - a) + one(-a) * t) + one(2.0 * a * a * b - 1.0) * t
        y2 = ((16777217.0 + a) * d + 0.1 * b * t.astype(np.float64)).astype(np.float32)
        y3 = (((0.0 + 1e16 * a) + 3.0 * (a * b)) + -1e16 * (b * b)) * d
        return np.concatenate([y0, y1, y2, y3.astype(np.float32)], axis=1)

    requests = [
        Request("defaults", {}, result(2.0, -3.0), exact=True),
        Request("both scalars", {"a": 0.1, "b": 7}, result(0.1, 7.0), exact=True),
        Request("one scalar", {"b": 0}, result(2.0, 0.0), exact=True),
        Request("terms are added one by one", {"a": 1, "b": 1}, result(1.0, 1.0), exact=True),
    ]
    return Case("polynomials", {"p": text}, requests, tables={"t": t, "d": d})


def split_and_concat() -> Case:
    """Cut into equal parts and join along each axis, floating-point numbers, integers and truth values."""
    text = """program p() {
    table f: float32[2, 4, 6]
    table i: int64[6, 2]
    table b: bool[2, 3]
    a0: float32[1, 4, 6], a1: float32[1, 4, 6] = split(f, axis=0)
    b0: float32[1, 4, 2], b1: float32[1, 4, 2], b2: float32[1, 4, 2] = split(a1, axis=2)
    c0: float32[1, 2, 2], c1: float32[1, 2, 2] = split(b1, axis=1)
    d: float32[1, 2, 2] = split(c0, axis=2)
    e: float32[1, 4, 2] = concat(d, c1, axis=1)
    g: float32[1, 4, 8] = concat(b2, a0, axis=2)
    h: float32[1, 4, 10] = concat(e, g, axis=2)
    i0: int64[2, 2], i1: int64[2, 2], i2: int64[2, 2] = split(i, axis=0)
    j: int64[2, 4] = concat(i2, i0, axis=1)
    b3: bool[2, 1], b4: bool[2, 1], b5: bool[2, 1] = split(b, axis=1)
    k: bool[2, 4] = concat(b5, b5, b3, b4, axis=1)
    l: float32[2, 4] = linear(j, k; 1.0, 100.0)
    m: float32[1, 4], n: float32[1, 4] = split(l, axis=0)
    return m, h, n
}
"""
    text = text.replace("return m, h, n", "o: float32[1, 8] = concat(m, n, axis=1)\n    return o")
    shown = text.replace("return o", "return h")
    f = np.arange(48, dtype=np.float32).reshape(2, 4, 6)
    i, b = np.arange(12, dtype=np.int64).reshape(6, 2), np.array([[True, False, True], [False, True, False]])
    g = np.concatenate([f[1:, :, 4:], f[:1]], axis=2)
    h = np.concatenate([f[1:, :, 2:4], g], axis=2)
    j, k = np.concatenate([i[4:], i[:2]], axis=1), b[:, [2, 2, 0, 1]]
    requests = [
        Request("floating-point numbers", {"program": "floats"}, h, exact=True),
        Request("integers and truth values", {"program": "integers"}, (j + 100 * k).reshape(1, 8), exact=True),
    ]
    programs = {
        "floats": shown.replace("program p", "program floats"),
        "integers": text.replace("program p", "program integers"),
    }
    return Case("split_and_concat", programs, requests, tables={"f": f, "i": i, "b": b})


def ports() -> Case:
    """Pass arguments by the names of ports, in any order, and take results by position, whatever their names."""
    text = """program p() {
    graph f(a: float32[1, 2], b: float32[1, 2], c: float32[]) -> (sum: float32[1, 2], product: float32[1, 2])
    graph constant() -> (k: float32[1, 2])
    k: float32[1, 2] = constant()
    s0: float32[1, 2], p0: float32[1, 2] = f(c=0.5, b=[[3, 4]], a=k)
    s1: float32[1, 2], p1: float32[1, 2] = f(a=s0, b=s0, c=-2)
    y: float32[1, 8] = concat(s0, p0, s1, p1, axis=1)
    return y
}
"""
    graphs = {
        "f": "g (float c, float[1,2] b, float[1,2] a) => (float[1,2] first, float[1,2] second) "
        "{ d = Mul(b, c) first = Sub(a, d) second = Mul(a, d) }",
        "constant": "g () => (float[1,2] y) <float[1,2] y0 = {7.0, -1.0}> { y = Identity(y0) }",
    }
    k, b = np.array([[7, -1]], np.float32), np.array([[3, 4]], np.float32)
    s0, p0 = k - 0.5 * b, k * 0.5 * b
    result = np.concatenate([s0, p0, s0 + 2 * s0, s0 * -2 * s0], axis=1)
    return Case("ports", {"p": text}, one_request(result), graphs)


def quantized() -> Case:
    """Multiply 8-bit integers whose sums of two products leave 16 bits: the result is exact on every CPU."""
    text = """program p() {
    graph f(x: float32[1, 64]) -> (y: float32[1, 4])
    table x: float32[1, 64]
    y: float32[1, 4] = f(x=x)
    return y
}
"""
    weights = ", ".join("127" if column < 2 else "-127" for _ in range(64) for column in range(4))
    graph = f"""g (float[1,64] x) => (float[1,4] y)
    <float s = {{0.0078125}}, uint8 z = {{0}}, float[4] ws = {{0.5, 0.25, 0.5, 1.0}}, int8[4] wz = {{0, 0, 0, 0}},
     int8[64,4] w = {{{weights}}}>
    {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear<axis=1>(w, ws, wz)
       y = MatMul(d, v) }}"""
    x = np.linspace(1.8, 1.98, 64, dtype=np.float32)[None]
    [result] = ReferenceEvaluator(model(graph)).run(None, {"x": x})
    return Case("quantized", {"p": text}, one_request(result), {"f": graph}, {"x": x}, manifest={"target": "onnx-w8a8"})
