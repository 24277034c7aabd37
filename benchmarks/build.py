"""Measure what a build takes: memory beyond the imports, time and disk, for models of the sizes that people have.

Writes checkpoints with random weights, slice after slice, then builds each in a process of its own. The rival, for
what fits, loads the pipeline with diffusers in float32 and exports its components with ``torch.onnx.export``. Prints a
table, or with ``--json`` an object. The folders stay below ``--work``, to be used again; the bundles do not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers as d
import torch
import transformers as t
from accelerate import init_empty_weights
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

ROOT = Path(__file__).parent.parent
SLICE = 1 << 24

MEASURED = """
import importlib, json, sys, time
from pathlib import Path
from diffc.compiler.driver import build
from diffc.compiler.backends import ort
def megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
index = json.loads((Path(sys.argv[1]) / "model_index.json").read_text())
for library, kind in [pair for pair in index.values() if isinstance(pair, list) and pair[0]]:
    getattr(importlib.import_module(library), kind)
getattr(importlib.import_module("diffusers"), index["_class_name"])
before, start = megabytes("VmRSS:"), time.monotonic()
{work}
print(json.dumps({{"imports": before, "peak": megabytes("VmHWM:"), "seconds": time.monotonic() - start}}))
"""

DIFFC = """
build.build(sys.argv[1], sys.argv[3], sys.argv[2], steps=[2], progress=lambda what: print(what, file=sys.stderr))
"""

BASELINE = """
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32, local_files_only=True)
folder = Path(sys.argv[2])
folder.mkdir()
class Decode(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae
    def forward(self, latents):
        return self.vae.decode(latents).sample
ids = torch.zeros(1, 77, dtype=torch.long)
parts = {
    "text_encoder": (pipeline.text_encoder, (ids,)),
    "unet": (pipeline.unet, (torch.zeros(2, 4, 64, 64), torch.tensor(1), torch.zeros(2, 77, 768))),
    "vae_decode": (Decode(pipeline.vae), (torch.zeros(1, 4, 64, 64),)),
}
for name, (module, example) in parts.items():
    with torch.no_grad():
        torch.onnx.export(module.eval(), example, folder / f"{name}.onnx", dynamo=True, external_data=True)
"""


# Checkpoints


def tokenizer() -> t.CLIPTokenizer:
    """Make a byte-level BPE that knows every byte."""
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return t.CLIPTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def clip() -> t.CLIPTextModel:
    """Make the text encoder of CLIP ViT-L/14."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    special = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    return t.CLIPTextModel(t.CLIPTextConfig(vocab_size=49408, hidden_act="quick_gelu", **sizes, **special))


def autoencoder(**changes: Any) -> d.AutoencoderKL:
    """Make the autoencoder of Stable Diffusion."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    shape = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    return d.AutoencoderKL(**blocks | shape | changes)


def sd15() -> tuple[type, dict[str, Any], torch.dtype]:
    """Describe Stable Diffusion 1.5: 1.07 billion weights in float32."""
    unet = d.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = d.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **betas)
    components = {"vae": autoencoder(), "text_encoder": clip(), "tokenizer": tokenizer(), "unet": unet}
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return d.StableDiffusionPipeline, {**components, "scheduler": scheduler, **absent}, torch.float32


def flux(blocks: int = 19, single_blocks: int = 38) -> tuple[type, dict[str, Any], torch.dtype]:
    """Describe FLUX.1-dev: 11.9 billion weights in bfloat16. Its second text encoder has one layer here, not 24."""
    transformer = d.FluxTransformer2DModel(num_layers=blocks, num_single_layers=single_blocks, guidance_embeds=True)
    t5 = t.T5Config(
        vocab_size=32128,
        d_model=4096,
        d_ff=10240,
        d_kv=64,
        num_heads=64,
        num_layers=1,
        feed_forward_proj="gated-gelu",
    )
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(c), -5.0) for c in range(97, 123))]
    components = {
        "scheduler": d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": autoencoder(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159),
        "text_encoder": clip(),
        "tokenizer": tokenizer(),
        "text_encoder_2": t.T5EncoderModel(t5),
        "tokenizer_2": t.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512),
        "transformer": transformer,
    }
    return d.FluxPipeline, components, torch.bfloat16


@dataclass(frozen=True)
class Model:
    """Describe how a checkpoint is made, its target, and whether the baseline fits into 24 GB of memory."""

    title: str
    describe: Callable[[], tuple[type, dict[str, Any], torch.dtype]]
    target: str
    has_baseline: bool = False


MODELS = {
    "sd15": Model("SD 1.5", sd15, "ort-fp32", has_baseline=True),
    "flux-quarter": Model("FLUX.1-dev, a quarter of its blocks", lambda: flux(5, 9), "ort-bf16"),
    "flux": Model("FLUX.1-dev", flux, "ort-bf16"),
}


def write(folder: Path, describe: Callable[[], tuple[type, dict[str, Any], torch.dtype]]) -> None:
    """Write a checkpoint's folder; no more than a slice of its weights is ever in memory."""
    with init_empty_weights(include_buffers=False):
        pipeline_class, components, dtype = describe()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    index: dict[str, Any] = {"_class_name": pipeline_class.__name__, "_diffusers_version": d.__version__}
    for name, component in components.items():
        if component is None or isinstance(component, bool):
            index[name] = [None, None] if component is None else component
            continue
        index[name] = [type(component).__module__.split(".")[0], type(component).__name__]
        if isinstance(component, nn.Module):
            (partial / name).mkdir(parents=True)
            save_config = component.config.save_pretrained if isinstance(component, t.PreTrainedModel) else None
            (save_config or component.save_config)(partial / name)
            file = "model.safetensors" if save_config else SAFETENSORS_WEIGHTS_NAME
            _write_weights(component, dtype, partial / name / file)
        else:
            component.save_pretrained(partial / name)
    (partial / "model_index.json").write_text(json.dumps(index))
    partial.rename(folder)


def _write_weights(module: nn.Module, dtype: torch.dtype, path: Path) -> None:
    """Write the safetensors format by hand: a length, a header of JSON, and the numbers."""
    tensors = {key: (tensor, dtype if tensor.is_floating_point() else tensor.dtype) for key, tensor in _owned(module)}
    named = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, (tensor, kind) in tensors.items():
        start, end = end, end + tensor.numel() * kind.itemsize
        header[key] = {"dtype": named[kind], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = torch.randn(2 * SLICE, generator=torch.Generator().manual_seed(0)) * 0.02
    typed = {kind: numbers.to(kind).view(torch.uint8).numpy().data for _, kind in tensors.values()}
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for place, (tensor, kind) in enumerate(tensors.values()):
            if not tensor.is_floating_point():
                file.write(tensor.numpy().tobytes())
                continue
            for left in range(tensor.numel(), 0, -SLICE):
                start = (place * 4099 + left) % SLICE * kind.itemsize
                file.write(typed[kind][start : start + min(left, SLICE) * kind.itemsize])


def _owned(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor of a module once, tied ones under their first name."""
    seen = set[int]()
    for key, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield key, tensor


# Measurements


def size(folder: Path) -> int:
    """Add up the files of a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def vanishing(folder: Path) -> Iterator[Path]:
    """Yield the name of a folder, and remove the folder before and after."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measured(work: str, source: Path, output: Path, target: str) -> dict[str, float]:
    """Run a piece of work in a process of its own, without a cache; return MB beyond the imports, and seconds."""
    command = [sys.executable, "-c", MEASURED.format(work=work), str(source), str(output), target]
    with vanishing(output.with_suffix(".cache")) as cache:
        environment = os.environ | {"DIFFC_CACHE": str(cache)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    measurements = json.loads(done.stdout.splitlines()[-1])
    measurements |= {
        "megabytes": measurements["peak"] - measurements["imports"],
        "source": size(source),
        "bundle": size(output),
    }
    return dict(measurements)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where the checkpoints lie")
    parser.add_argument("--models", default="sd15,flux", help=f"which of {', '.join(MODELS)}")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    measurements: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.models.split(","):
        model, source = MODELS[name], options.work / name
        if not source.exists():
            write(source, model.describe)
        measurements[name] = {}
        for by, work in {"diffc": DIFFC, "torch.onnx": BASELINE}.items():
            if by == "diffc" or model.has_baseline:
                with vanishing(options.work / f"{name}.{by}") as output:
                    measurements[name][by] = measured(work, source, output, model.target)
    print(json.dumps(measurements, indent=1) if options.json else table(measurements))


def table(measurements: dict[str, dict[str, dict[str, float]]]) -> str:
    """Lay the measurements out."""
    lines = ["| model | by | target | checkpoint | bundle | memory beyond the imports | time |", "|---" * 7 + "|"]
    for name, rows in measurements.items():
        for by, row in rows.items():
            sizes = (
                f"{row['source'] / 1e9:.1f} GB | {row['bundle'] / 1e9:.1f} GB | {row['megabytes'] * 1.048576:.0f} MB"
            )
            target = MODELS[name].target if by == "diffc" else "float32"
            lines.append(f"| {MODELS[name].title} | {by} | {target} | {sizes} | {row['seconds']:.0f} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
