"""Write tiny bundles by hand: the format, without the compiler."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from diffc.runtime import Sampler, load

STEPS = (900, 500, 100)
HIDDEN = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
BIAS = np.array([[[0.1]], [[0.2]], [[-0.3]]], np.float32)
ONNX_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

Ports = Mapping[str, tuple[str, list[int]]]


def word_tokenizer() -> str:
    """Return a tokenizer with one id for each of six words, between a start (0) and an end (1)."""
    words = ["<start>", "<end>", "<unknown>", "red", "blue", "circle", "square", "small"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    return tokenizer.to_str()


def external(name: str, location: str, array: np.ndarray) -> TensorProto:
    """Declare a tensor whose values lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(
    nodes: list[onnx.NodeProto], inputs: Ports, outputs: Ports, initializers: list[TensorProto], *, opset: int = 20
) -> bytes:
    """Serialize an ONNX model."""

    def ports(named: Ports) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, ONNX_TYPES[kind], shape) for name, (kind, shape) in named.items()]

    proto = helper.make_graph(nodes, "graph", ports(inputs), ports(outputs), initializers)
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


def tiny_graphs(batch: int, location: str = "weights/hidden.bin") -> dict[str, bytes]:
    """Return a text encoder (a lookup), a denoiser (out = sample/2 + timestep/1000 + mean of hidden) and a sigmoid."""
    node, scalar = helper.make_node, lambda name, value: numpy_helper.from_array(np.float32(value), name)
    latents = ("float32", [2 * batch, 3, 4, 4])
    return {
        "text_encoder": graph(
            [node("Gather", ["table", "input_ids"], ["hidden"], axis=0)],
            {"input_ids": ("int64", [batch, 8])},
            {"hidden": ("float32", [batch, 8, 4])},
            [external("table", location, HIDDEN)],
        ),
        "unet": graph(
            [
                node("Mul", ["sample", "half"], ["halved"]),
                node("Cast", ["timestep"], ["t"], to=TensorProto.FLOAT),
                node("Mul", ["t", "thousandth"], ["time"]),
                node("ReduceMean", ["hidden", "axes"], ["mean"], keepdims=1),
                node("Unsqueeze", ["mean", "last"], ["means"]),
                node("Add", ["halved", "time"], ["sum"]),
                node("Add", ["sum", "means"], ["out"]),
            ],
            {"sample": latents, "timestep": ("int64", []), "hidden": ("float32", [2 * batch, 8, 4])},
            {"out": latents},
            [
                scalar("half", 0.5),
                scalar("thousandth", 0.001),
                numpy_helper.from_array(np.array([1, 2]), "axes"),
                numpy_helper.from_array(np.array([3]), "last"),
            ],
        ),
        "decoder": graph(
            [node("Sigmoid", ["z"], ["image"])],
            {"z": ("float32", [batch, 3, 4, 4])},
            {"image": ("float32", [batch, 3, 4, 4])},
            [],
        ),
    }


def tiny_program(batch: int, name: str = "draw", guard: str = "guard guidance_scale > 1.0") -> str:
    """Sample in three steps with guidance and, like an ancestral sampler, with noise in every step."""
    b, bb, x = f"{batch}", f"{2 * batch}", f"float32[{batch}, 3, 4, 4]"
    options = 'tokenizer="words", length=8, pad=1'
    lines = [
        f"program {name}(prompt: text[{b}], negative_prompt: text[{b}], guidance_scale: scalar = 5.0) {{",
        guard,
        f"graph text_encoder(input_ids: int64[{b}, 8]) -> (hidden: float32[{b}, 8, 4])",
        f"graph unet(sample: float32[{bb}, 3, 4, 4], timestep: int64[], hidden: float32[{bb}, 8, 4])"
        f" -> (out: float32[{bb}, 3, 4, 4])",
        f"graph decoder(z: {x}) -> (image: {x})",
        "table bias: float32[3, 1, 1]",
        f"i0: int64[{b}, 8], m0: int64[{b}, 8] = tokenize(negative_prompt, {options})",
        f"i1: int64[{b}, 8] = tokenize(prompt, {options})",
        f"h0: float32[{b}, 8, 4] = text_encoder(input_ids=i0)",
        f"h1: float32[{b}, 8, 4] = text_encoder(input_ids=i1)",
        f"h: float32[{bb}, 8, 4] = concat(h0, h1, axis=0)",
        f"x0: {x} = noise()",
    ]
    for at, timestep in enumerate(STEPS):
        lines += [
            f"c{at}: float32[{bb}, 3, 4, 4] = concat(x{at}, x{at}, axis=0)",
            f"y{at}: float32[{bb}, 3, 4, 4] = unet(sample=c{at}, timestep={timestep}, hidden=h)",
            f"u{at}: {x}, v{at}: {x} = split(y{at}, axis=0)",
            f"z{at}: {x} = noise()",
            f"x{at + 1}: {x} = linear(x{at}, u{at}, v{at}, z{at}; "
            "0.9, 0.1 + -0.1*guidance_scale, 0.1*guidance_scale, 0.05)",
            f"step(x{at + 1}; 2.0)",
        ]
    lines += [
        f"s: {x} = linear(x{len(STEPS)}, bias; 0.5, 1.0, 0.1)",
        f"image: {x} = decoder(z=s)",
        "return image",
        "}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def tiny_images(ids: np.ndarray, negative_ids: np.ndarray, guidance: float, noises: list[np.ndarray]) -> np.ndarray:
    """Compute the images of `tiny_program` in NumPy, any number at once."""
    means = [HIDDEN[each].mean(axis=(1, 2))[:, None, None, None] for each in (negative_ids, ids)]
    x = noises[0]
    for at, timestep in enumerate(STEPS):
        u, v = (x * 0.5 + timestep * 0.001 + mean for mean in means)
        x = 0.9 * x + 0.1 * (1 - guidance) * u + 0.1 * guidance * v + 0.05 * noises[at + 1]
    return decoded(x).transpose(0, 2, 3, 1)


def decoded(x: np.ndarray) -> np.ndarray:
    """Compute the tail of `tiny_program` in NumPy."""
    return 1 / (1 + np.exp(-(0.5 * x + BIAS + 0.1)))


def write_bundle(folder: Path, files: Mapping[str, bytes], **manifest: Any) -> Path:
    """Write files and a manifest that lists them."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    listed = {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in files.items()}
    complete = {"schema": 1, "diffc": "0.1.0", "target": "ort-fp32", "files": listed, "provenance": {}, **manifest}
    (folder / "manifest.json").write_text(json.dumps(complete))
    return folder


def write_tiny(
    folder: Path,
    *,
    batch: int = 1,
    programs: Mapping[str, str] | None = None,
    place: str = "graphs/{}.onnx",
    graphs: Mapping[str, bytes] | None = None,
    more: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Path:
    """Write the bundle of `tiny_program`, graphs at ``place`` and ``more`` files; ``changes`` are of the manifest."""
    models = tiny_graphs(batch) | dict(graphs or {})
    files = {place.format(name): content for name, content in models.items()}
    files |= {"weights/hidden.bin": HIDDEN.tobytes(), "tokenizer/words.json": word_tokenizer().encode()}
    files |= {"tables.safetensors": save({"bias": BIAS}), **(more or {})}
    manifest = {
        "programs": programs or {"draw": tiny_program(batch)},
        "graphs": {name: {"file": place.format(name), "component": name} for name in models},
        "tokenizers": {"words": "tokenizer/words.json"},
    }
    return write_bundle(folder, files, **(manifest | changes))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Share a bundle of two programs, with and without guidance, of batch 1."""
    plain = tiny_program(1, "plain", "guard guidance_scale <= 1.0")
    programs = {"draw": tiny_program(1), "plain": plain}
    return write_tiny(tmp_path_factory.mktemp("shared") / "tiny.diffc", programs=programs)


@pytest.fixture
def bundle(shared: Path, tmp_path: Path) -> Path:
    """Copy the shared bundle, to be broken."""
    return shutil.copytree(shared, tmp_path / "tiny.diffc")


@pytest.fixture(scope="session")
def sampler(shared: Path) -> Sampler:
    """Open the shared bundle."""
    return load(shared, threads=1)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    """Open a bundle of batch 2."""
    return load(write_tiny(tmp_path_factory.mktemp("pairs") / "pairs.diffc", batch=2), threads=1)


# The ids of two prompts and of the empty one.
RED, BLUE, NOTHING = [0, 3, 5, 1, 1, 1, 1, 1], [0, 4, 6, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]


def noises(seed: int, count: int, times: int = 4) -> list[np.ndarray]:
    """Return what torch generates for the noises of `tiny_program`."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn((count, 3, 4, 4), generator=generator).numpy() for _ in range(times)]


def expected(ids: list[list[int]], noise: list[np.ndarray], guidance: float = 5.0) -> np.ndarray:
    """Compute the images of prompts with an empty negative prompt."""
    return tiny_images(np.array(ids), np.array([NOTHING] * len(ids)), guidance, noise)


def close(array: np.ndarray, reference: np.ndarray) -> None:
    """Compare images in [0, 1]. Float32 sums in another order differ by 2e-7, measured."""
    np.testing.assert_allclose(array, reference, rtol=0, atol=2e-6)


def small_sampler(folder: Path, body: str) -> Sampler:
    """Open a bundle of a program of images T = float32[1, 3, 1, 1], with a scalar ``a`` and without graphs."""
    text = f"program p(a: scalar = 2.0) {{ {body} }}".replace("T ", "float32[1, 3, 1, 1] ")
    return load(write_bundle(folder, {}, programs={"p": text}, graphs={}, tokenizers={}))


class Tiny:
    """Carry this file's functions to the tests, which cannot import it."""

    red, blue = RED, BLUE
    noises = staticmethod(noises)
    expected = staticmethod(expected)
    close = staticmethod(close)
    sampler = staticmethod(small_sampler)

    steps = STEPS
    bias = BIAS
    program = staticmethod(tiny_program)
    graphs = staticmethod(tiny_graphs)
    graph = staticmethod(graph)
    external = staticmethod(external)
    images = staticmethod(tiny_images)
    decoded = staticmethod(decoded)
    write = staticmethod(write_tiny)
    write_bundle = staticmethod(write_bundle)
    tokenizer = staticmethod(word_tokenizer)


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    """Return the functions that write tiny bundles."""
    return Tiny
