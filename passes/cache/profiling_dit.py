"""Reuse the residuals of runs of blocks that attend to the background; compute the blocks that attend to objects.

Paper: Ma et al., "Model Reveals What to Cache: Profiling-Based Feature Reuse for Video Diffusion Models", ICCV 2025,
       https://arxiv.org/abs/2504.03140 (labels by attention, the warm-up; one residual for each run, as in its code)

Before (a transformer):
    y0 = transformer(x0)
    x1 = linear(x0, y0)
    y1 = transformer(x1)

After (warmup=0.0, interval=2, share=0.5):
    h0 = embed(x0)
    a0 = first(h0)
    b0 = second(a0)
    c0 = third(b0)
    y0 = fourth(c0)
    r0 = linear(a0, h0; 1, -1)
    s0 = linear(c0, b0; 1, -1)
    x1 = linear(x0, y0)
    h1 = embed(x1)
    a1 = linear(r0, h1; 1, 1)
    b1 = second(a1)
    c1 = linear(s0, b1; 1, 1)
    y1 = fourth(c1)

The program's own trajectory is profiled. The foreground are the tokens whose latents, when the image is nearly done,
are far from those of most. A block attends to it if one of its tokens receives more attention from the
image's tokens than one of the background does, over heads, steps and prompts. Steps are evaluations of the denoiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import fx

from diffc.compiler.analysis.stages import LATENT, stages_of_ports
from diffc.compiler.analysis.transformer_blocks import Transformer, isotropic
from diffc.compiler.calibration.calibrate import Calibrate, Calibration
from diffc.compiler.calibration.observe import watch
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.apply_schedule import Reuse, Schedule, cached, check_interval
from diffc.compiler.ir.program import Graph, Program

aten = torch.ops.aten

SAMPLES = 16
"""The number of evaluations in which attention is profiled."""


def profiling_dit(
    programs: Sequence[Program],
    calibrated: Calibrate,
    *,
    interval: int = 4,
    warmup: float = 0.12,
    share: float | None = None,
) -> tuple[Program, ...]:
    """Compute all blocks in the part ``warmup`` of the steps, then in one of ``interval``; those between reuse.

    The blocks that attend to the background are reused, or the part ``share`` of all blocks that does so most. Raises
    `PassError` for a graph that is not mostly blocks of one width with attention, and where there is nothing to reuse.
    """
    if interval < 1 or not 0 <= warmup <= 1 or not 0 < (1.0 if share is None else share) <= 1:
        raise PassError(
            f"profiling-dit: interval={interval}, warmup={warmup:g}, share={share}",
            fix="give an interval of 1 or more, and parts from 0 to 1 of the steps and of the blocks",
        )
    labels = dict[str, list[range]]()

    def follow(program: Program, graph: Graph, count: int) -> Schedule:
        check_interval("profiling-dit", interval, program, count)
        first = round(warmup * count)
        if first + 1 >= count:
            what = f"profiling-dit: {first} of {count} evaluations warm up"
            raise PassError(what, where=program.name, fix="give a smaller warmup, or more steps")
        transformer = isotropic(graph, [program], "profiling-dit")
        if graph.name not in labels:
            ratios = _Profile(graph, transformer, program, calibrated(program)).ratios()
            labels[graph.name] = _runs(ratios, share)
        if not labels[graph.name]:
            what = "profiling-dit: all blocks attend to the foreground"
            raise PassError(what, where=graph.name, fix="give the share of the blocks that is reused, as share=0.5")
        added = [feature for each in transformer.features(*labels[graph.name]) for feature in each]
        since = [max(0, at - first) % interval for at in range(count)]
        reuses = (tuple(Reuse(feature, at - since[at]) for feature in added if since[at]) for at in range(count))
        return Schedule(reuses)

    return cached(programs, follow)


def _runs(ratios: Sequence[float], share: float | None) -> list[range]:
    """List the runs of blocks that attend to the background."""
    ranked = sorted(range(len(ratios)), key=ratios.__getitem__)
    count = sum(ratio < 1 for ratio in ratios) if share is None else max(1, round(share * len(ratios)))
    runs = groupby(enumerate(sorted(ranked[:count])), lambda pair: pair[1] - pair[0])
    blocks = [[block for _, block in run] for _, run in runs]
    return [range(run[0], run[-1] + 1) for run in blocks]


class _Profile:
    """Watch the attention of a transformer's blocks.

    The tokens of the image are those whose keys in the first block change with the latents.
    """

    def __init__(self, graph: Graph, transformer: Transformer, program: Program, calibration: Calibration) -> None:
        self.graph, self.transformer, self.calibration = graph, transformer, calibration
        ports = stages_of_ports(graph, [program])
        self.latents = [ports[port.name] >= LATENT for port in graph.inputs]
        nodes = {node.name: node for node in transformer.body.graph.nodes}
        self.products = {name: at for at, block in enumerate(transformer.blocks) for name in block.products}
        if any(nodes[name].target is not aten.scaled_dot_product_attention.default for name in self.products):
            what = "profiling-dit: blocks have no attention from token to token"
            raise PassError(what, where=graph.name, fix="choose delta-dit, which needs none")
        self.foreground: dict[int, torch.Tensor] = {}
        for sample in {sample.prompt: sample for sample in calibration.of(graph)}.values():
            self._see(sample)

    def _see(self, last: Sample) -> None:
        """Find the image's tokens, and those of the foreground, [batch, tokens], by a prompt's last evaluation."""
        blank = [torch.zeros_like(x) if is_latent else x for x, is_latent in zip(last.feeds, self.latents, strict=True)]
        keys, first = list[torch.Tensor](), dict[str, list[torch.Tensor]]()
        names = [stream.before for stream in self.transformer.blocks[0].streams if stream.before]

        def visit(node: fx.Node, arguments: tuple[Any, ...], output: torch.Tensor, _: Sample) -> None:
            if node.name in self.products:
                keys.append(arguments[1])
            else:
                first.setdefault(node.name, []).append(output)

        watched: dict[str, Sequence[int]] = dict.fromkeys(names, ())
        samples = (last, replace(last, feeds=tuple(blank)))
        watch(self.graph, samples, watched | {self.transformer.blocks[0].products[0]: (0, 1)}, visit)
        self.image_tokens = (keys[0] != keys[1]).any(-1).flatten(0, 1).any(0)
        embedded = max((attention - still for attention, still in first.values()), key=lambda x: float(x.abs().sum()))
        self.foreground[last.prompt] = _foreground(embedded)

    def ratios(self) -> list[float]:
        """Return for each block the attention to a foreground token over that to a background token, both means."""
        sums = torch.zeros(len(self.transformer.blocks), 2)

        def visit(node: fx.Node, arguments: tuple[Any, ...], _: object, sample: Sample) -> None:
            attention, front = self._drawn(node, *arguments), self.foreground[sample.prompt]
            sums[self.products[node.name]] += torch.stack([attention[front].mean(), attention[~front].mean()])

        some = replace(self.calibration, samples=tuple(self.calibration.of(self.graph))).few(SAMPLES)
        watch(self.graph, some.samples, dict.fromkeys(self.products, (0, 1, 2, 3)), visit)
        return [float(front / back) for front, back in sums]

    def _drawn(self, node: fx.Node, query: torch.Tensor, key: torch.Tensor, _: object, mask: Any) -> torch.Tensor:
        """Return the attention to each image token from the image tokens, [batch, tokens], head by head."""
        own_scale = node.kwargs.get("scale")
        scale = own_scale if isinstance(own_scale, float) else query.shape[-1] ** -0.5
        shared, total = query.shape[1] // key.shape[1], torch.zeros(())
        for head in range(query.shape[1]):
            scores = query[:, head].float() @ key[:, head // shared].float().mT * scale
            if mask is not None:
                bias = mask if mask.is_floating_point() else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
                scores += bias.expand(*query.shape[:-1], -1)[:, head]
            total = total + scores.softmax(-1)[:, self.image_tokens][:, :, self.image_tokens].mean(1)
        return total / query.shape[1]


def _foreground(embedded: torch.Tensor) -> torch.Tensor:
    """Mark tokens [batch, tokens] of values [batch, tokens, channels] that are far from the median one.

    The distances are parted where the classes' means are farthest apart for their sizes, as by Otsu (1979).
    """
    far = (embedded - embedded.median(1, keepdim=True).values).norm(dim=-1)
    ordered = far.sort(-1).values
    count = torch.arange(1, ordered.shape[-1])
    low, total = ordered.cumsum(-1)[:, :-1], ordered.sum(-1, keepdim=True)
    between = (low / count - (total - low) / (ordered.shape[-1] - count)).square() * count * (len(count) + 1 - count)
    return torch.gt(far, ordered.gather(-1, between.argmax(-1, keepdim=True)))
