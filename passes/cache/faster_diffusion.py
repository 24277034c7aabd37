"""Compute the UNet's encoder in key steps only; the steps between decode the features of the last key step.

Paper: Li et al., "Faster Diffusion: Rethinking the Role of UNet Encoder in Diffusion Models", NeurIPS 2024,
       https://arxiv.org/abs/2312.09608 (encoder propagation, and as in its code noise that is added back)

Before (a UNet):
    y0 = unet(x0)
    x1 = linear(x0, y0)
    y1 = unet(x1)

After (interval=2):
    h0, d0 = encoder(x0)
    y0 = decoder(h0, d0)
    x1 = linear(x0, y0)
    y1 = decoder(h0, d0)

The encoder is every node that the skip connections and the lowest level of the decoder are computed from, the outputs
of a ControlNet among them. A step between key steps does not read its latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diffc.compiler.analysis.skip_connections import skips
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.apply_schedule import Feature, Reuse, Schedule, cached, since
from diffc.compiler.feature_cache.batch_steps import step_batches
from diffc.compiler.ir.program import Graph, Names, Op, Polynomial, Program, Ref, Value

KEYS, OF = (0, 1, 2, 3, 5, 10, 15, 25, 35), 50
"""The published key steps, and the number of steps that they are of; for other numbers they are scaled."""


def faster_diffusion(
    programs: Sequence[Program], *, interval: int = 0, noise: float = 0.0, batched: bool = False
) -> tuple[Program, ...]:
    """Encode in the published key steps, or in one of ``interval`` steps.

    If ``batched``, all steps until the next key step are decoded at once: on a CPU that was hardly faster (8 % for five
    steps of a small UNet), and each number of steps is a graph, which holds the decoder's weights in memory once more.

    ``noise`` is the share of the first noise that is added to the latents before each step of the second half; the
    paper's code adds 0.003, which restores texture. Raises `PassError` for a graph without skip connections.
    """

    def follow(program: Program, graph: Graph, count: int) -> Schedule:
        if not 0 <= interval <= count:
            what = f"faster-diffusion: the interval is {interval}, and there are {count} evaluations of the denoiser"
            raise PassError(what, where=program.name, fix=f"give an interval from 1 to {count}, or 0 for key steps")
        keys = range(0, count, interval) if interval else sorted({round(key * count / OF) for key in KEYS})
        features = _encoded(graph, program)
        last = enumerate(since(keys, count))
        return Schedule(tuple(Reuse(f, key) for f in features if key != at) for at, key in last)

    rewritten = cached(programs, follow)
    rewritten = step_batches(rewritten) if batched else rewritten
    return tuple(_with_noise(program, noise) for program in rewritten) if noise else rewritten


def _encoded(graph: Graph, program: Program) -> list[Feature]:
    """Name the encoder's values that the decoder reads."""
    connections = skips(graph, [program])
    if not connections:
        fix = "choose delta-dit, profiling-dit, cachequant or a-sdm, which reuse residual blocks"
        raise PassError("faster-diffusion: the denoiser has no skip connections", where=graph.name, fix=fix)
    return [Feature(name) for name in dict.fromkeys((connections[-1].up, *(skip.across for skip in connections)))]


def _with_noise(program: Program, amount: float) -> Program:
    """Add a part of the first noise to the latents before each step of the second half, except the very first."""
    names, ops, noised = Names(program.types()), list[Op](), dict[str, str]()
    noise = next((op.results[0] for op in program.ops if op.operator == "noise"), None)
    count, done = sum(op.operator == "step" for op in program.ops), 0
    for op in program.ops:
        ops.append(op.renamed(noised))
        done += op.operator == "step"
        if op.operator == "step" and count / 2 <= done < count:
            latents, *others = ops[-1].args
            if noise is None or others or program.types()[next(op.reads())] != noise.type:
                fix = "leave noise out, or choose a sampler of which each step has one value, such as dpmpp-2m"
                what = "faster-diffusion: latents are not one value that noise can be added to"
                raise PassError(what, where=str(op), fix=fix)
            noisy = Value(names.new("noised_"), noise.type)
            factors = (Polynomial.constant(1.0), Polynomial.constant(amount))
            ops.append(Op("linear", (latents, Ref(noise.name)), (), factors, (noisy,)))
            noised[next(op.reads())] = noisy.name
    return replace(program, ops=tuple(ops))
