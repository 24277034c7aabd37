"""Define bundles that show how requests are served, and compute in NumPy what they return, at PyTorch's noise.

No runtime of diffc takes part. The programs are as small as what they show allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tests.format.authoring import Array, Case, Request, Step, last, noise
from tests.runtime.conftest import (
    BIAS,
    HIDDEN,
    tiny_graphs,
    tiny_images,
    tiny_program,
    word_tokenizer,
)

NOTHING, RED, BLUE = [0, 1, 1, 1, 1, 1, 1, 1], [0, 3, 5, 1, 1, 1, 1, 1], [0, 4, 6, 1, 1, 1, 1, 1]
CUT = [0, 3, 3, 3, 3, 3, 3, 1]
"""Token ids of an empty text, "red circle", "blue square", and of more than six times "red" in a length of 8."""


def request_cases() -> Iterator[Case]:
    """Yield the bundles whose requests differ."""
    yield sampler("sampler", 1)
    yield sampler("pairs", 2)
    yield from (
        guards(),
        texts(),
        text_operations(),
        sizes(),
        several_rows(),
        steps(),
        stages(),
    )


def sampler(name: str, batch: int) -> Case:
    """Sample in three steps with guidance, and noise in each of them, ``batch`` images at a time."""

    def result(
        ids: Sequence[list[int]], noises: Sequence[Array], guidance: float = 5.0, no: Sequence[int] = ()
    ) -> Array:
        return tiny_images(np.array(ids), np.array([no or NOTHING] * len(ids)), guidance, list(noises))

    def rows(count: int, draws: int = 4) -> list[tuple[int, ...]]:
        return [(count, 3, 4, 4)] * draws

    latents = np.linspace(-2, 2, 96, dtype=np.float32).reshape(2, 3, 4, 4)
    seeds = [np.concatenate(each) for each in zip(*(noise(seed, *rows(1)) for seed in (7, 8, 9)), strict=True)]
    first, three = noise(5, *rows(2, 3)), ["red circle", "blue square", "red circle"]
    programs = {"draw": tiny_program(batch), "plain": tiny_program(batch, "plain", "guard guidance_scale <= 1.0")}
    requests = [
        Request("defaults", {"prompt": "red circle", "seed": 0}, result([RED], noise(0, *rows(1)))),
        Request("no prompt", {"seed": 2}, result([NOTHING], noise(2, *rows(1)))),
        Request(
            "negative prompt and guidance",
            {"prompt": "red circle", "negative_prompt": "blue square", "guidance_scale": 3, "seed": 1},
            result([RED], noise(1, *rows(1)), 3.0, BLUE),
        ),
        Request("a long prompt is cut", {"prompt": "red " * 20, "seed": 0}, result([CUT], noise(0, *rows(1)))),
        Request("one seed, three images", {"prompt": three, "seed": 7}, result([RED, BLUE, RED], noise(7, *rows(3)))),
        Request(
            "a seed for each image",
            {"prompt": "red circle", "num_images": 3, "seed": [7, 8, 9]},
            result([RED] * 3, seeds),
        ),
        Request(
            "two images of each prompt",
            {"prompt": ["red circle", "blue square"], "num_images": 2, "seed": 3},
            result([RED, RED, BLUE, BLUE], noise(3, *rows(4))),
        ),
        Request(
            "latents for each image",
            {"prompt": "red circle", "num_images": 2, "latents": latents, "seed": 5},
            result([RED] * 2, [latents, *first]),
        ),
        Request(
            "latents for all images",
            {"prompt": "red circle", "num_images": 2, "latents": latents[:1], "seed": 5},
            result([RED] * 2, [latents[[0, 0]], *first]),
        ),
        Request(
            "a guard chooses the program",
            {"prompt": "red circle", "guidance_scale": 0.5, "seed": 0},
            result([RED], noise(0, *rows(1)), 0.5),
        ),
        Request(
            "a program by its name",
            {"prompt": "red circle", "guidance_scale": 1.0, "program": "plain", "seed": 0},
            result([RED], noise(0, *rows(1)), 1.0),
        ),
        Request("a size that it makes", {"size": [4, 4], "seed": 2}, result([NOTHING], noise(2, *rows(1)))),
        Request("a named program whose guard fails", {"guidance_scale": 0.5, "program": "draw"}, refused="request"),
        Request("the default of a named program fails its guard", {"program": "plain"}, refused="request"),
        Request("an unknown program", {"program": "other"}, refused="request"),
        Request("an unknown size", {"size": [8, 4]}, refused="request"),
        Request("an unknown input", {"strength": 0.5}, refused="request"),
        Request("no image", {"num_images": 0}, refused="request"),
        Request("three negative prompts for two", {"prompt": three[:2], "negative_prompt": three}, refused="request"),
        Request("two seeds for three images", {"num_images": 3, "seed": [1, 2]}, refused="request"),
        Request("a seed that is too large", {"seed": 2**64}, refused="request"),
        Request("a seed that is too small", {"seed": -(2**63) - 1}, refused="request"),
        Request("a seed that is a text", {"seed": "0"}, refused="request"),
        Request("guidance that is a text", {"guidance_scale": "5"}, refused="request"),
        Request("a prompt that is a number", {"prompt": 5}, refused="request"),
        Request("no prompts", {"prompt": []}, refused="request"),
        Request("a prompt with a NUL", {"prompt": "red\0circle"}, refused="request"),
        Request("latents of another shape", {"latents": latents[:, :, :2]}, refused="request"),
        Request("latents for too many images", {"latents": latents}, refused="request"),
        Request("latents that are NaN", {"latents": np.full((1, 3, 4, 4), np.nan, np.float32)}, refused="request"),
    ]
    graphs, files = tiny_graphs(batch), {"weights/hidden.bin": HIDDEN.tobytes()}
    tokenizers = {"words": word_tokenizer()}
    return Case(name, programs, requests, graphs, {"bias": BIAS}, tokenizers, files=files)


def steps() -> Case:
    """Report steps over batches of two: numbers, images and latents; previews where the tail allows them."""
    T = "float32[2, 3, 2, 2]"
    text = f"""program p(a: scalar = 2.0) {{
    n: {T} = noise()
    m: {T} = noise()
    step(n; 1.0)
    step(n, m; 0.5, 0.25*a, 1.0)
    i: {T} = linear(m, n; 0.5*a, 1.0, 0.5)
    return i
}}
"""
    n, m = noise(2, (3, 3, 2, 2), (3, 3, 2, 2))
    latents, result = [n, 0.5 * n + 0.5 * m + 1], last(m + n + 0.5)
    previews = [last(2 * (x - 1) + 0.5) for x in latents]
    reports = [
        Step(2 * batch + at + 1, 4, list(range(3))[rows], latents[at][rows], previews[at][rows])
        for batch, rows in enumerate((slice(0, 2), slice(2, 3)))
        for at in (0, 1)
    ]
    three = {"num_images": 3, "seed": 2}
    return Case(
        "steps",
        {"p": text},
        [
            Request("three images in two batches", three, result, steps=reports),
            Request("a callback cancels", three, refused="cancelled", steps=reports[:3], cancel_after=3),
        ],
    )


def guards() -> Case:
    """Choose among programs by comparisons with two scalars; each program returns its own number."""

    def program(name: str, inputs: str, value: float, *conditions: str) -> str:
        lines = "".join(f"    guard {condition}\n" for condition in conditions)
        return f"program {name}({inputs}) {{\n{lines}    y: float32[1, 1] = linear(; {value})\n    return y\n}}\n"

    g, h = "g: scalar = 5.0", "h: scalar = 3.0"
    programs = {
        "above": program("above", g, 1.0, "g > 1.0"),
        "at": program("at", g, 2.0, "g == 1.0"),
        "between": program("between", f"{g}, {h}", 3.0, "g >= 0.5", "h != 2.0"),
        "below": program("below", g, 4.0, "g < 0.5", "g <= 0.0"),
        "needs": program("needs", f"{g}, k: scalar", 5.0, "k == -1.5"),
    }

    def serves(name: str, inputs: dict[str, object], value: float) -> Request:
        return Request(name, inputs, np.array([[value]], np.float32))

    return Case(
        "guards",
        programs,
        [
            serves("the default of the first program", {}, 1.0),
            serves("just above a bound", {"g": 1.0000001}, 1.0),
            serves("at a bound", {"g": 1}, 2.0),
            serves("the default of another scalar", {"g": 0.5}, 3.0),
            serves("a scalar that only one program reads", {"g": 4, "h": 1.0}, 3.0),
            serves("both guards of a program", {"g": -1}, 4.0),
            serves("a scalar without default", {"k": -1.5}, 5.0),
            Request("a guard against each program", {"g": 0.25}, refused="request"),
            Request("no program reads both scalars", {"h": 1.0, "k": -1.5}, refused="request"),
            Request("not equal", {"h": 2.0}, refused="request"),
            Request("a text for a scalar", {"g": ""}, refused="request"),
            Request("a scalar without default is missing", {"program": "needs"}, refused="request"),
        ],
    )


def texts() -> Case:
    """Read texts through templates and truncation, and prefer the program that reads what the request gives."""
    ids, options = "int64[1, 6]", 'tokenizer="words", length=6'
    both = f"""program both(prompt: text[1], negative_prompt: text[1]) {{
    a: {ids}, m: int32[1, 6] = tokenize(prompt, {options}, pad=1)
    b: {ids} = tokenize(negative_prompt, {options}, pad=7)
    y: float32[1, 6] = linear(a, b, m; 1.0, 10.0, 100.0)
    return y
}}
"""
    one = f"""program one(prompt: text[1]) {{
    a: {ids}, m: {ids} = tokenize(prompt, {options}, pad=1, template="small {{}} circle")
    y: float32[1, 6] = linear(a, m; 1.0, 100.0)
    return y
}}
"""

    def result(a: list[int], length: int, b: Sequence[int] = (0,) * 6) -> Array:
        mask = np.arange(6) < length
        return np.array([np.array(a) + 10 * np.array(b) + 100 * mask], np.float32)

    no = [0, 4, 1, 7, 7, 7]
    empty = [0, 1, 7, 7, 7, 7]
    requests = [
        Request("the negative prompt is left out", {"prompt": "red"}, result([0, 7, 3, 5, 1, 1], 5)),
        Request("the template is cut", {"prompt": "red red red"}, result([0, 7, 3, 3, 3, 1], 6)),
        Request("braces in a text stay", {"prompt": "{}"}, result([0, 7, 2, 5, 1, 1], 5)),
        Request("an empty text in a template", {"prompt": ""}, result([0, 7, 5, 1, 1, 1], 4)),
        Request(
            "an empty negative prompt counts",
            {"prompt": "red", "negative_prompt": ""},
            result([0, 3, 1, 1, 1, 1], 3, empty),
        ),
        Request(
            "a negative prompt", {"prompt": "RED green", "negative_prompt": "blue"}, result([0, 3, 2, 1, 1, 1], 4, no)
        ),
        Request("none is no text", {"prompt": "red", "negative_prompt": None}, result([0, 7, 3, 5, 1, 1], 5)),
        Request(
            "a full length",
            {"prompt": "red blue circle square", "program": "both"},
            result([0, 3, 4, 5, 6, 1], 6, empty),
        ),
    ]
    return Case("texts", {"both": both, "one": one}, requests, tokenizers={"words": word_tokenizer()})


def text_operations() -> Case:
    """Change a text, one operation after the other, before it is tokenized."""
    text = """program p(prompt: text[1]) {
    a: text[1] = replace(prompt, old="_", new="  ")
    b: text[1] = collapse(a)
    c: text[1] = expand(b, tokenizer="words", words=[["red", "blue red"], ["blue", "small"]])
    d: text[1] = fill(c, template="{} square")
    i: int64[1, 7], m: int64[1, 7] = tokenize(d, tokenizer="words", length=7, pad=1)
    y: float32[1, 7] = linear(i, m; 1.0, 100.0)
    return y
}
"""

    def result(*ids: int) -> Array:
        return np.array([[*(100 + token for token in ids), *[1] * (7 - len(ids))]], np.float32)

    requests = [
        Request("a word that is expanded", {"prompt": "red_circle"}, result(0, 4, 3, 5, 6, 1)),
        Request("an expansion that is not expanded again", {"prompt": "red"}, result(0, 4, 3, 6, 1)),
        Request("both words", {"prompt": "blue red"}, result(0, 7, 7, 3, 6, 1)),
        Request("a token that is written otherwise", {"prompt": "RED_CIRCLE"}, result(0, 3, 5, 6, 1)),
        Request("an empty text", {"prompt": ""}, result(0, 6, 1)),
    ]
    return Case("text_operations", {"p": text}, requests, tokenizers={"words": word_tokenizer()})


def sizes() -> Case:
    """Choose a program by the size of what it makes; a guard decides among those of one size."""

    def program(name: str, height: int, width: int, value: float, guard: str) -> str:
        y = f"y: float32[1, 1, {height}, {width}] = linear(; {value})"
        return f"program {name}(g: scalar = 2.0) {{\n    guard {guard}\n    {y}\n    return y\n}}\n"

    programs = {
        "small": program("small", 2, 4, 0.25, "g > 1.0"),
        "large": program("large", 4, 6, 0.5, "g > 1.0"),
        "plain": program("plain", 4, 6, 0.75, "g <= 1.0"),
    }
    wide, high = np.full((1, 2, 4, 1), 0.25), np.full((1, 4, 6, 1), 0.5)
    requests = [
        Request("the first program's size", {}, wide),
        Request("a width and a height", {"size": [6, 4]}, high),
        Request("a size and a guard", {"size": [6, 4], "g": 1}, high * 1.5),
        Request("a guard without a size", {"g": 0}, high * 1.5),
        Request("a guard against the size", {"size": [4, 2], "g": 0}, refused="request"),
        Request("height and width exchanged", {"size": [4, 6]}, refused="request"),
        Request("a named program of another size", {"size": [4, 2], "program": "large"}, refused="request"),
        Request("three edges", {"size": [6, 4, 1]}, refused="request"),
    ]
    return Case("sizes", programs, requests)


def several_rows() -> Case:
    """Return two rows for each image: those of one image follow one another."""
    text = """program p(a: float32[1, 3]) {
    n: float32[1, 3] = noise()
    m: float32[1, 3] = linear(a; 2.0)
    step(m; 1.0)
    y: float32[2, 3] = concat(n, m, axis=0)
    return y
}
"""
    a = np.arange(6, dtype=np.float32).reshape(2, 3)

    def result(noises: Array, arrays: Array) -> Array:
        return np.stack([noises, 2 * arrays], axis=1).reshape(-1, 3)

    one, two = noise(4, (1, 3))[0], noise(4, (2, 3))[0]
    seeds = np.concatenate([noise(seed, (1, 3))[0] for seed in (1, 2)])
    requests = [
        Request("one image", {"a": a[:1], "seed": 4}, result(one, a[:1])),
        Request("two arrays", {"a": a, "seed": 4}, result(two, a)),
        Request("two images of one array", {"a": a[:1], "num_images": 2, "seed": 4}, result(two, a[[0, 0]])),
        Request("a seed for each image", {"a": a[:1], "num_images": 2, "seed": [1, 2]}, result(seeds, a[[0, 0]])),
    ]
    return Case("several_rows", {"p": text}, requests)


def stages() -> Case:
    """Call a graph of the request once for each prompt, and one for all steps, whose memory may be given back."""
    text = """program p(prompt: text[1]) {
    graph encode(ids: int64[1, 4]) -> (hidden: float32[1, 4])
    graph modulate(hidden: float32[1, 4], t: float32[2, 1]) -> (scales: float32[2, 4])
    graph denoise(x: float32[1, 4], scale: float32[1, 4]) -> (y: float32[1, 4])
    table t: float32[2, 1]
    i: int64[1, 4] = tokenize(prompt, tokenizer="words", length=4, pad=1)
    h: float32[1, 4] = encode(ids=i)
    s: float32[2, 4] = modulate(hidden=h, t=t)
    s0: float32[1, 4], s1: float32[1, 4] = split(s, axis=0)
    x0: float32[1, 4] = noise()
    x1: float32[1, 4] = denoise(x=x0, scale=s0)
    x2: float32[1, 4] = denoise(x=x1, scale=s1)
    return x2
}
"""
    t = np.array([[0.5], [2.0]], np.float32)
    graphs = {
        "encode": "g (int64[1,4] ids) => (float[1,4] hidden) { hidden = Cast<to=1>(ids) }",
        "modulate": "g (float[1,4] hidden, float[2,1] t) => (float[2,4] scales) { scales = Mul(hidden, t) }",
        "denoise": "g (float[1,4] x, float[1,4] scale) => (float[1,4] y) { y = Add(x, scale) }",
    }
    facts = {"encode": {"component": "text_encoder"}, "denoise": {"component": "unet"}}
    facts["modulate"] = {"component": "unet", "stage": "request_step"}

    def result(ids: list[list[int]], seed: int) -> Array:
        [n] = noise(seed, (len(ids), 4))
        return n + 2.5 * np.array(ids)

    red, blue = [0, 3, 1, 1], [0, 4, 1, 1]
    requests = [
        Request("a prompt", {"prompt": "red", "seed": 0}, result([red], 0)),
        Request("the prompt again", {"prompt": "red", "seed": 1}, result([red], 1)),
        Request("three prompts", {"prompt": ["red", "blue", "red"], "seed": 2}, result([red, blue, red], 2)),
    ]
    return Case("stages", {"p": text}, requests, graphs, {"t": t}, {"words": word_tokenizer()}, facts)
