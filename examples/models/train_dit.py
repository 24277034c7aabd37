"""Train the transformer example model: rectified flow with joint attention, as in Stable Diffusion 3."""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from training import MAX_TOKENS, LatentData, Plan, add_plan_arguments, device, fit, seeded, taught_states, teach_layouts
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

BATCH = 32
TEXT_WIDTH = 128
SHIFT = 3.0
EMPTY_TOKENS = 256
MUON = r"transformer_blocks\.\d+\.(attn|ff|ff_context)\..*weight$"


def new_text_encoder(tokenizer: CLIPTokenizer, activation: str) -> CLIPTextModelWithProjection:
    """Build one of the two untrained text encoders."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act=activation,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_transformer() -> SD3Transformer2DModel:
    """Build the untrained transformer; its blocks start out as if they were not there."""
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=8,
        num_attention_heads=5,
        attention_head_dim=32,
        caption_projection_dim=160,
        joint_attention_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if name.endswith((".norm1.linear", ".norm1_context.linear", "norm_out.linear", "proj_out")):
                nn.init.zeros_(module.weight)
    return transformer


class RepeatedTokenAttention:
    """Joint attention whose last text token stands for many equal ones, to the same result as with all of them.

    Without a third text encoder the pipeline appends 256 zero tokens; they are equal in every block.
    """

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from and to image and text tokens."""

        def heads(states: Tensor) -> Tensor:
            return states.view(*states.shape[:2], attn.heads, -1).transpose(1, 2)

        image, text = hidden_states, encoder_hidden_states
        query = torch.cat([attn.norm_q(heads(attn.to_q(image))), attn.norm_added_q(heads(attn.add_q_proj(text)))], 2)
        key = torch.cat([attn.norm_k(heads(attn.to_k(image))), attn.norm_added_k(heads(attn.add_k_proj(text)))], 2)
        value = torch.cat([heads(attn.to_v(image)), heads(attn.add_v_proj(text))], 2)
        scores = query @ key.to(query.dtype).transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores[..., -1] += math.log(EMPTY_TOKENS)
        mixed = scores.softmax(-1).to(value.dtype) @ value
        mixed = mixed.transpose(1, 2).flatten(2).to(image.dtype)
        count = image.shape[1]
        text_out = None if attn.context_pre_only else attn.to_add_out(mixed[:, count:])
        return attn.to_out[0](mixed[:, :count]), text_out


def encode(first: nn.Module, second: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Encode tokens as the pipeline does, but with one zero token in place of the third encoder's many."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in (first, second)]
    tokens = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    return nn.functional.pad(tokens, (0, 0, 0, 1)), torch.cat([output.text_embeds for output in outputs], -1)


@torch.no_grad()
def check_equals_pipeline(pipeline: StableDiffusion3Pipeline, ids: Tensor, caption: str) -> None:
    """Make sure that training sees what the pipeline computes."""
    tokens, pooled = encode(pipeline.text_encoder, pipeline.text_encoder_2, ids)
    all_tokens, _, all_pooled, _ = pipeline.encode_prompt(caption, None, None, do_classifier_free_guidance=False)
    assert all_tokens.shape[1] == MAX_TOKENS + EMPTY_TOKENS
    latents = torch.randn(1, 4, 16, 16, device=ids.device)
    times = torch.tensor([500.0], device=ids.device)
    transformer = pipeline.transformer
    expected = transformer(latents, all_tokens, all_pooled, times).sample
    original = transformer.attn_processors
    transformer.set_attn_processor(RepeatedTokenAttention())
    actual = transformer(latents, tokens, pooled, times).sample
    transformer.set_attn_processor(original)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def export(pipeline: StableDiffusion3Pipeline, tokenizer: Path, folder: Path) -> None:
    """Write the pipeline with 16-bit weights; the tokenizers' files are those of the given folder."""
    pipeline.to(torch.float16).save_pretrained(folder)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tokenizer, folder / name, dirs_exist_ok=True)


def main() -> None:
    """Train text encoders and transformer together and write a diffusers folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_plan_arguments(parser, steps=8000, rate=1e-3)
    parser.add_argument("--text-steps", type=int, default=600, help="steps that train each text encoder alone")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("shapes-dit"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    seed, work = options.seed, options.work
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    autoencoder = AutoencoderKL.from_pretrained(work / "autoencoder")
    autoencoder.register_to_config(_name_or_path="autoencoder")
    first, second = (new_text_encoder(tokenizer, activation).to(device()) for activation in ("quick_gelu", "gelu"))
    transformer = new_transformer().to(device())

    for index, encoder in enumerate((first, second), 1):

        def states(ids: Tensor, encoder: nn.Module = encoder) -> list[Tensor]:
            outputs = encoder(ids, output_hidden_states=True)
            return taught_states(outputs.text_embeds, outputs.hidden_states[-2])

        plan = Plan(f"dit-text-{index}", options.text_steps, 1e-3, seed + index, work, decay=0.99)
        teach_layouts(encoder, states, tokenizer, plan)

    data = LatentData.load(work, tokenizer)
    scale, shift = float(autoencoder.config.scaling_factor), float(autoencoder.config.shift_factor)

    def loss_at(step: int) -> Tensor:
        generator = seeded(seed, step)
        latents, ids = data.batch(BATCH, generator)
        clean = (latents - shift) * scale
        noise = torch.randn(latents.shape, generator=generator).to(device())
        sigma = (torch.randn(BATCH, generator=generator) + math.log(SHIFT)).sigmoid().to(device())
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        with torch.autocast(device().type, torch.bfloat16):
            tokens, pooled = encode(first, second, ids)
            velocity: Tensor = transformer(noisy, tokens, pooled, sigma * 1000).sample.float()
        return (velocity - (noise - clean)).square().mean()

    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=autoencoder.to(device()),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    check_equals_pipeline(pipeline, data.empty[None].to(device()), "")
    for encoder in (first, second):
        encoder.set_attn_implementation("eager")
    standard_attention = transformer.attn_processors
    transformer.set_attn_processor(RepeatedTokenAttention())
    fit(
        nn.ModuleDict({"transformer": transformer, "text_encoder": first, "text_encoder_2": second}),
        loss_at,
        Plan("dit", options.steps, options.rate, seed, work, muon=MUON),
    )
    transformer.set_attn_processor(standard_attention)
    check_equals_pipeline(pipeline, data.empty[None].to(device()), "")
    export(pipeline, work / "tokenizer", options.output)


if __name__ == "__main__":
    main()
