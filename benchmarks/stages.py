"""Measure how much of full-size denoisers is computed before the loop; ``make stages`` writes docs/measured/stages.md.

The models have the architectures of their releases and no weights: they are captured on PyTorch's meta device, called
as their pipelines call them, 20 steps with guidance, and cut by the rule that `diffc build` uses.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from diffc.compiler.analysis.hoisting import Cut
from diffc.compiler.analysis.stages import NAMES
from diffc.compiler.analysis.work import work_of_graph
from diffc.compiler.graph.body import needed
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.graph.symbolic import elements
from diffc.compiler.ir.program import Graph, Input, Literal, Op, Program, Ref, Value

STEPS = 20
PAGE = Path(__file__).parent.parent / "docs" / "measured" / "stages.md"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """Describe a denoiser: how it is made, and what it is called with at each stage."""

    make: Callable[[], nn.Module]
    latent: Mapping[str, Shape]
    request: Mapping[str, Shape]
    timestep: Shape
    constant: Mapping[str, Shape] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    integers: tuple[str, ...] = ()
    why: str = ""


class Called(nn.Module):
    """Call a denoiser with named tensors, those of a condition in a dictionary of their own."""

    def __init__(self, model: Model, names: list[str]) -> None:
        super().__init__()
        self.denoiser, self.names, self.fixed = model.make().eval(), names, dict(model.fixed)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the prediction."""
        arguments: dict[str, Any] = {}
        for name, tensor in zip(self.names, tensors, strict=True):
            outer, _, inner = name.partition("__")
            if inner:
                arguments.setdefault(outer, {})[inner] = tensor
            else:
                arguments[name] = tensor
        return self.denoiser(**arguments, **self.fixed, return_dict=False)[0]


def sdxl_unet(**changes: Any) -> nn.Module:
    """Make the denoiser of SDXL, and of models that changed its text encoder."""
    return diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        **changes,
    )


MODELS = {
    "SD 1.5": Model(
        lambda: diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        {"sample": (2, 4, 64, 64)},
        {"encoder_hidden_states": (2, 77, 768)},
        (),
        why="the time projections of every block, and the keys and values of the text",
    ),
    "SDXL": Model(
        lambda: sdxl_unet(projection_class_embeddings_input_dim=2816),
        {"sample": (2, 4, 128, 128)},
        {
            "encoder_hidden_states": (2, 77, 2048),
            "added_cond_kwargs__text_embeds": (2, 1280),
            "added_cond_kwargs__time_ids": (2, 6),
        },
        (),
        why="the keys and values of the text in 70 blocks",
    ),
    "Kolors": Model(
        lambda: sdxl_unet(
            projection_class_embeddings_input_dim=5632, encoder_hid_dim=4096, encoder_hid_dim_type="text_proj"
        ),
        {"sample": (2, 4, 128, 128)},
        {
            "encoder_hidden_states": (2, 256, 4096),
            "added_cond_kwargs__text_embeds": (2, 4096),
            "added_cond_kwargs__time_ids": (2, 6),
        },
        (),
        why="the text's projection, and the keys and values of the text in 70 blocks",
    ),
    "PixArt-Σ": Model(
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=128,
            num_layers=28,
            attention_head_dim=72,
            num_attention_heads=16,
            caption_channels=4096,
            in_channels=4,
            cross_attention_dim=1152,
            out_channels=8,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            use_additional_conditions=False,
        ),
        {"hidden_states": (2, 4, 128, 128)},
        {"encoder_hidden_states": (2, 300, 4096)},
        (2,),
        fixed={"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        why="the caption's projection, its keys and values, and one modulation for all blocks",
    ),
    "SD3-medium": Model(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
            out_channels=16,
            pos_embed_max_size=192,
        ),
        {"hidden_states": (2, 16, 128, 128)},
        {"encoder_hidden_states": (2, 333, 4096), "pooled_projections": (2, 2048)},
        (2,),
        why="the modulations of 24 blocks, which time and pooled text make",
    ),
    "FLUX.1-dev": Model(
        lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True),
        {"hidden_states": (1, 4096, 64)},
        {"encoder_hidden_states": (1, 512, 4096), "pooled_projections": (1, 768), "guidance": (1,)},
        (1,),
        {"img_ids": (4096, 3), "txt_ids": (512, 3)},
        why="the modulations of 57 blocks, which time, guidance and pooled text make",
    ),
    "Qwen-Image": Model(
        lambda: diffusers.QwenImageTransformer2DModel(num_layers=60),
        {"hidden_states": (1, 4096, 64)},
        {"encoder_hidden_states": (1, 128, 3584)},
        (1,),
        fixed={"img_shapes": [[(1, 64, 64)]]},
        why="the modulations of 60 blocks, which the time alone makes: they become tables",
    ),
    "Wan 2.1 1.3B": Model(
        lambda: diffusers.WanTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960),
        {"hidden_states": (1, 16, 5, 60, 104)},
        {"encoder_hidden_states": (1, 512, 4096)},
        (1,),
        why="the text's projection, its keys and values; blocks share one modulation",
    ),
    "Sana 1.6B": Model(
        lambda: diffusers.SanaTransformer2DModel(),
        {"hidden_states": (2, 32, 32, 32)},
        {"encoder_hidden_states": (2, 300, 2304)},
        (2,),
        why="the caption's projection, its keys and values; blocks share one modulation",
    ),
    "DiT-XL/2": Model(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=28,
            sample_size=32,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        ),
        {"hidden_states": (2, 4, 32, 32)},
        {"class_labels": (2,)},
        (2,),
        integers=("timestep", "class_labels"),
        why="the modulations of 28 blocks, which time and class make, each with an embedding of its own",
    ),
}


def program(model: Model) -> tuple[Graph, Program]:
    """Capture the denoiser and write the loop that calls it."""
    shapes = {**model.latent, **model.request, "timestep": model.timestep, **model.constant}
    kinds = {name: torch.long if name in model.integers else torch.float32 for name in shapes}
    with torch.device("meta"):
        called = Called(model, list(shapes))
        example = [torch.empty(shape, dtype=kinds[name]) for name, shape in shapes.items()]
    body = export("denoiser", called, example)
    ports = tuple(Value(name, type_of(tensor)) for name, tensor in zip(shapes, example, strict=True))
    out = Value("out", type_of(body.graph.output_node().args[0][0].meta["val"]))
    graph = Graph("denoiser", ports, (out,), body)
    types = {port.name: port.type for port in ports}
    inputs = tuple(Input(name, types[name]) for name in model.request)
    ops = [Op("noise", results=(Value(name, types[name]),)) for name in model.latent]
    for step in range(STEPS):
        time_ = float(1000 - step)
        times: Literal = (time_,) * model.timestep[0] if model.timestep else time_
        arguments: dict[str, Literal] = {name: Ref(name) for name in (*model.latent, *model.request)}
        arguments |= {"timestep": times} | dict.fromkeys(model.constant, 0.0)
        ops.append(Op("denoiser", attrs=tuple(arguments.items()), results=(Value(f"y{step}", out.type),)))
    return graph, Program("main", inputs, graphs=(graph,), ops=tuple(ops), outputs=(f"y{STEPS - 1}",))


def row(name: str, model: Model) -> str:
    """Measure one model."""
    start = time.monotonic()
    graph, loop = program(model)
    cells = [name, *shares(graph, [loop]), model.why]
    print(f"{time.monotonic() - start:6.1f} s  {name}", flush=True)
    return f"| {' | '.join(cells)} |"


def shares(graph: Graph, loops: Sequence[Program]) -> list[str]:
    """Return the cells that say how much of a denoiser leaves the loops that call it, and what remains of it."""
    cut = Cut.of(graph, loops)
    weights = set(cut.body.graph.find_nodes(op="get_attr"))
    parameters = {p for p, _ in cut.body.named_parameters()}
    hoisted = [node for nodes in cut.hoisted.values() for node in nodes]
    late = needed(cut.body.graph, [cut.body.graph.output_node()], hoisted)
    total = sum(p.numel() for p in cut.body.parameters())
    left = sum(node.meta["val"].numel() for node in weights & late if node.target in parameters)
    work = work_of_graph(graph, cut.ports)
    calls = sum(work.multiply_adds.values())
    sizes = {stage: sum(elements(n.meta["val"]) for n in nodes) * 4 for stage, nodes in cut.hoisted.items()}
    steps = len(cut.rows)
    return [
        f"{total / 1e9:.2f} B",
        *(f"{work.parameters[stage] / total:.1%}" for stage in NAMES[:3]),
        f"**{1 - left / total:.1%}**",
        f"{1 - work.multiply_adds['latent'] / calls:.2%}",
        f"{(sizes['build'] + steps * sizes['step']) / 1e6:.1f} MB",
        f"{(sizes['request'] + steps * sizes['request_step']) / 1e6:.1f} MB",
    ]


HEAD = f"""# What leaves the loop

How much of full-size denoisers is computed before the loop of {STEPS} steps starts, by the architectures of diffusers
{diffusers.__version__}, captured without weights. `make stages` wrote this page.

*step*, *request* and *both*: the share of the parameters that are needed with the timestep, the request, or both,
before any latents are. *Leave*: the share that the loop does not hold in the end, by the rule of `diffc build`. *Work*:
the share of one call's multiply-adds that the loop saves. *Tables* are in the bundle (float32), *kept* is held during a
run.

| model | parameters | step | request | both | leave | work | tables | kept | what leaves |
|---|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Write the page, or print the rows of some models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="only these, printed")
    models = parser.parse_args().models
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    rows = [row(name, MODELS[name]) for name in models or MODELS]
    if models:
        print("\n".join(rows))
    else:
        PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
