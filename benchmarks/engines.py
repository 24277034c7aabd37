"""Measure what TensorRT engines take to build, and what they hold, for models of the sizes that people have.

Writes checkpoints with random weights, and builds each on the command line for every precision: one prompt, one step,
rounding to nearest, for the numbers do not matter to the builder. What is measured comes from the build's own report.
Rows that are measured are kept, so that a run that was interrupted goes on. The bundles do not stay.

    make engines                            # all rows of docs/measured/engines.md
    python -m benchmarks.engines --model sd15 --precision w8a8
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers as d
import torch
import transformers as t

from benchmarks.build import ROOT, vanishing
from benchmarks.checkpoints import autoencoder, sd15, tokenizer, write

PAGE = ROOT / "docs" / "measured" / "engines.md"
PROMPT = "a red circle left of a blue square\n"
QUICK = "calibrate_ranges?:by=minmax+round_to_nearest:by=minmax"
QUANTIZED = ("w8a8", "w4a16", "w4a8", "fp8", "fp4")
PRECISIONS = ("fp16", *QUANTIZED)


def text_encoder(width: int, kind: type = t.CLIPTextModelWithProjection) -> Any:
    """Make one layer of a text encoder: the denoisers are what is large."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 8}
    special = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513, "projection_dim": width}
    return kind(t.CLIPTextConfig(vocab_size=514, **sizes, **special))


def sdxl() -> tuple[type, dict[str, Any], torch.dtype]:
    """Describe SDXL's denoiser of 2.57 billion weights, with a layer of each text encoder."""
    unet = d.UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    components = {"vae": autoencoder(), "unet": unet, "scheduler": d.EulerDiscreteScheduler()}
    components |= {"text_encoder": text_encoder(768, t.CLIPTextModel), "text_encoder_2": text_encoder(1280)}
    components |= {"tokenizer": tokenizer(), "tokenizer_2": tokenizer(), "force_zeros_for_empty_prompt": True}
    return d.StableDiffusionXLPipeline, components, torch.bfloat16


def sd3() -> tuple[type, dict[str, Any], torch.dtype]:
    """Describe SD3-medium's transformer of 2.08 billion weights, with a layer of two text encoders."""
    transformer = d.SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=192,
    )
    components = {"transformer": transformer, "scheduler": d.FlowMatchEulerDiscreteScheduler(shift=3.0)}
    scales = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
    decoder = autoencoder(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **scales)
    components |= {"vae": decoder}
    components |= {"text_encoder": text_encoder(768), "text_encoder_2": text_encoder(1280)}
    components |= {"tokenizer": tokenizer(), "tokenizer_2": tokenizer(), "text_encoder_3": None, "tokenizer_3": None}
    return d.StableDiffusion3Pipeline, components, torch.bfloat16


MODELS = {"sd15": sd15, "sdxl": sdxl, "sd3": sd3}

SIZE = "256x256"
"""What is built for, so that calibrating does not take longer than building. Engines do not grow with it: the UNet of
SD 1.5 in fp16 had 1644.2 MB, and 1644.4 MB for 512x512."""


def measured(source: Path, precision: str, work: Path) -> dict[str, Any]:
    """Build a bundle, and give what its report says of the engines, the largest first."""
    prompts = work / "prompt.txt"
    prompts.write_text(PROMPT)
    command = [str(Path(sys.executable).with_name("diffc")), "build", str(source), "--target", f"trt-{precision}"]
    command += ["--steps", "2", "--calibration", str(prompts), "--size", SIZE]
    command += ["--quant", QUICK] if precision in QUANTIZED else []
    with vanishing(work / f"{source.name}-{precision}.diffc") as bundle:
        environment = os.environ | {"DIFFC_CACHE": str(work / "cache")}
        subprocess.run([*command, "-o", str(bundle)], check=True, env=environment)
        report = json.loads((bundle / "engines.json").read_text())
        quantization = bundle / "quantization.json"
        notes = json.loads(quantization.read_text())["notes"] if quantization.exists() else []
    engines = dict(sorted(report.items(), key=lambda each: -each[1]["bytes"]))
    return {"engines": engines, "notes": notes}


def table(model: str, measurements: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Write the rows of one model: an engine each, of those that are large."""
    yield f"## {model}"
    yield ""
    yield "| precision | graph | engine | weights | build | memory, peak | values by type |"
    yield "|---|---|---|---|---|---|---|"
    for precision, row in measurements.items():
        for name, each in row["engines"].items():
            if each["weights"] > 2e7:
                sizes = f"{each['bytes'] / 1e6:.0f} MB | {each['weights'] / 1e6:.0f} MB"
                took = f"{each['seconds']:.0f} s | {each['peak_bytes'] / 1e9:.1f} GB"
                types = ", ".join(f"{kind} {count}" for kind, count in sorted(each["types"].items()))
                yield f"| {precision} | {name} | {sizes} | {took} | {types} |"
    yield ""
    notes = {note: None for row in measurements.values() for note in row["notes"] if "no picture" not in note}
    yield from (f"- {note}" for note in notes)
    yield ""


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where the checkpoints lie")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    measurements: dict[str, dict[str, Any]] = {}
    for model in MODELS:
        stored = options.work / f"engines-{model}.json"
        measurements[model] = of_model = json.loads(stored.read_text()) if stored.exists() else {}
        for precision in options.precision or PRECISIONS:
            if model in (options.model or MODELS) and precision not in of_model:
                source = options.work / model
                if not source.exists():
                    write(source, MODELS[model])
                of_model[precision] = measured(source, precision, options.work)
                stored.write_text(json.dumps(of_model, indent=1))
    text = [line for model, of_model in measurements.items() if of_model for line in table(model, of_model)]
    PAGE.write_text(HEAD + "\n".join(text))


HEAD = """# What engines take

TensorRT for RTX, on two cores without a GPU, each engine for all architectures that have the precision (`make
engines`). The weights are those of the ONNX file that the builder reads, as it stores them; memory is that of the
builder's process. Models have random weights, and are built for pictures of 256×256, so that calibrating them does not
take longer than building: for 512×512 the UNet of SD 1.5 had 1644.4 MB in fp16 instead of 1644.2 MB. What is computed
otherwise than asked for is said below a table.

Measured on a CPU with AVX2, busy with other work, in several runs. The whole build had 13.3 GB in memory at its peak
for `sd3` in `w8a8`, and 22.2 GB for `sdxl`, when it drew pictures for its report: without VNNI, ONNX Runtime computes
8-bit integers in float32, and has the weights so.

"""

if __name__ == "__main__":
    main()
