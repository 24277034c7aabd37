"""Define a program whose sizes the request decides, with its modules: a causal text encoder and a denoiser that reads
its tokens beside the latents, in two branches with lengths of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim
from torch.nn.functional import scaled_dot_product_attention, silu

from diffc.compiler.analysis.work import work_by_stage
from diffc.compiler.backends.backend import Lowered, find_backend
from diffc.compiler.bundle.write import Contents, write_contents
from diffc.compiler.graph.export import export
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program
from diffc.runtime.bundle.tokenizer import Tokenizer, tokenize
from tests.runtime.conftest import word_tokenizer

LEAST, MOST = 2, 12

TEXT = """program p(prompt: text[1], negative_prompt: text[1]) {
    length L0 from 2 to 12
    length L1 from 2 to 12
    graph encoder(ids: int64[1, L0]) -> (hidden: float32[1, L0, 16])
    graph denoiser(x: float32[1, 5, 8], t: float32[1], text: float32[1, L0, 16]) -> (y: float32[1, 5, 8])
    i0: int64[1, L0] = tokenize(prompt, tokenizer="words", length=12, pad=1, count="L0")
    i1: int64[1, L1] = tokenize(negative_prompt, tokenizer="words", length=12, pad=1, count="L1")
    h0: float32[1, L0, 16] = encoder(ids=i0)
    h1: float32[1, L1, 16] = encoder(ids=i1)
    n: float32[1, 5, 8] = noise()
    c0: float32[1, 5, 8] = denoiser(x=n, t=[3.0], text=h0)
    u0: float32[1, 5, 8] = denoiser(x=n, t=[3.0], text=h1)
    x1: float32[1, 5, 8] = linear(n, c0, u0; 1.0, -3.0, 2.0)
    step(x1; 1.0)
    c1: float32[1, 5, 8] = denoiser(x=x1, t=[1.0], text=h0)
    u1: float32[1, 5, 8] = denoiser(x=x1, t=[1.0], text=h1)
    x2: float32[1, 5, 8] = linear(x1, c1, u1; 1.0, -3.0, 2.0)
    step(x2; 1.0)
    return x2
}
"""

PROMPTS = (
    ("", ""),
    ("red", ""),
    ("red blue circle square small", "small red"),
    ("red " * 40, "blue"),
    ("", "red " * 40),
)


class Encoder(nn.Module):
    """Attend to the tokens before each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.queries, self.norm = nn.Embedding(16, 16), nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, *ports: torch.Tensor) -> tuple[torch.Tensor]:
        """Return the hidden states of tokens."""
        [ids] = ports
        h = self.embedding(ids) + torch.sin(torch.arange(ids.shape[1]).float())[None, :, None]
        q = self.queries(self.norm(h)).unflatten(-1, (2, 8)).transpose(1, 2)
        return (h + scaled_dot_product_attention(q, q, q, is_causal=True).transpose(1, 2).flatten(-2),)


class Denoiser(nn.Module):
    """Attend over the tokens and the latents, modulated by the step and the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.text, self.out, self.pool = (
            nn.Linear(a, b) for a, b in ((8, 16), (16, 16), (16, 8), (16, 16))
        )
        self.qkv, self.step, self.modulation = nn.Linear(16, 48), nn.Linear(4, 16), nn.Linear(16, 32)
        self.register_buffer("positions", torch.randn(MOST, 16))

    def forward(self, *ports: torch.Tensor) -> tuple[torch.Tensor]:
        """Return the noise in the latents."""
        x, t, text = ports
        angle = t[:, None] * torch.exp(-torch.arange(2).float())
        embedding = silu(self.step(torch.cat([angle.sin(), angle.cos()], -1))) + self.pool(text.mean(1))
        scale, shift = self.modulation(silu(embedding)).chunk(2, -1)
        tokens = self.text(text) + self.positions[: text.shape[1]]  # type: ignore[index]
        h = torch.cat([tokens, self.latents(x)], 1) * (1 + scale[:, None]) + shift[:, None]
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(h).chunk(3, -1))
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return (self.out((h + attended)[:, text.shape[1] :]),)


@cache
def modules() -> tuple[Encoder, Denoiser]:
    """Return the modules, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder().eval().requires_grad_(False), Denoiser().eval().requires_grad_(False)


def open_like(*shapes: Sequence[int | None], dtypes: Sequence[torch.dtype] = ()) -> list[torch.Tensor]:
    """Return tensors without values for an export; a size of None is open."""
    types = dtypes or [torch.float32] * len(shapes)
    zeros = tuple(torch.zeros([n or 7 for n in shape], dtype=t) for shape, t in zip(shapes, types, strict=True))
    axes = [{at: Dim.DYNAMIC(min=LEAST, max=MOST) for at, n in enumerate(s) if n is None} or None for s in shapes]

    class Same(nn.Module):
        def forward(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
            return [tensor + 0 for tensor in tensors]

    exported = torch.export.export(Same(), zeros, dynamic_shapes=(tuple(axes),), strict=False)
    return [node.meta["val"] for node in exported.graph.find_nodes(op="placeholder")]


@cache
def open_program() -> Program:
    """Return the program with its graphs."""
    encoder, denoiser = modules()
    examples = {
        "encoder": open_like((1, None), dtypes=[torch.int64]),
        "denoiser": open_like((1, 5, 8), (1,), (1, None, 16)),
    }
    named: dict[str, nn.Module] = {"encoder": encoder, "denoiser": denoiser}
    bodies = {name: export(name, named[name], example) for name, example in examples.items()}
    program = parse(TEXT)
    return replace(program, graphs=tuple(replace(g, body=bodies[g.name], component=g.name) for g in program.graphs))


def tokens(prompt: str, negative: str) -> dict[str, torch.Tensor]:
    """Return the tokens of two texts and their lengths, by the names of the program."""
    program, tokenizers = open_program(), {"words": Tokenizer(word_tokenizer().encode(), "words")}
    arrays = [
        tokenize(op, tokenizers, [t], program.lengths) for op, t in zip(program.ops, (prompt, negative), strict=False)
    ]
    return {name: torch.from_numpy(array) for values in arrays for name, array in values.items()}


def sampled(values: dict[str, torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
    """Compute the program's result with its modules."""
    encoder, denoiser = modules()
    (conditional,), (unconditional,) = encoder(values["i0"]), encoder(values["i1"])
    x = noise
    for t in (3.0, 1.0):
        time = torch.tensor([t])
        x = x - 3 * denoiser(x, time, conditional)[0] + 2 * denoiser(x, time, unconditional)[0]
    return x


def write_bundle(program: Program, target: str, folder: Path) -> Path:
    """Lower a program and write its bundle."""
    name, precision = target.split("-")
    backend = find_backend(name)()
    folder.mkdir()
    files = backend.lower(list(program.graphs), precision, folder, lambda _: None)
    engines = backend.engines(Lowered(list(program.graphs), files, precision, (), folder, lambda _: None))
    texts, work = {"words": word_tokenizer()}, work_by_stage((open_program(),))
    write_contents(folder, Contents(target, (program,), texts, files, engines, {}, work, {}, {}))
    return folder
