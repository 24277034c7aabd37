"""Assemble the tokenizers, encoders, denoisers and decoders that pipelines of the zoo share."""

from string import ascii_lowercase
from typing import Any

import diffusers as d
import transformers as t
from tokenizers.pre_tokenizers import ByteLevel

from tests.zoo.entry import LENGTH, WIDTH, WORDS, Entry


def clip_tokenizer() -> t.CLIPTokenizer:
    """Make a byte-level BPE that knows every byte and two words."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("b", "l"), ("u", "e</w>"), ("bl", "ue</w>")]
    pieces = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {piece: n for n, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return t.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def t5_tokenizer() -> t.T5Tokenizer:
    """Make a unigram tokenizer that knows letters and the words of the requests."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((f"▁{word}", -3.0) for word in WORDS)]
    letters = [(letter, -5.0) for letter in ascii_lowercase]
    return t.T5Tokenizer(vocab=[*pieces, *letters], extra_ids=0, model_max_length=LENGTH)


def bert_tokenizer() -> t.BertTokenizer:
    """Make a word-piece tokenizer that knows letters."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_lowercase, *(f"##{c}" for c in ascii_lowercase)]
    return t.BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=LENGTH)


def gemma_tokenizer() -> t.GemmaTokenizer:
    """Make a BPE with spaces written as ▁ that knows letters."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *ascii_lowercase]
    return t.GemmaTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], model_max_length=LENGTH)


# Encoders


def clip_config(tokenizer: Any, **changes: Any) -> t.CLIPTextConfig:
    """Describe a text encoder of two layers."""
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "projection_dim": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return t.CLIPTextConfig(**settings | changes)


def clip(suffix: str = "", projected: bool = False, **changes: Any) -> dict[str, Any]:
    """Make a CLIP text encoder and its tokenizer, as the components of a pipeline."""
    tokenizer = clip_tokenizer()
    model = (t.CLIPTextModelWithProjection if projected else t.CLIPTextModel)(clip_config(tokenizer, **changes))
    return {f"text_encoder{suffix}": model, f"tokenizer{suffix}": tokenizer}


def t5(suffix: str = "", width: int = WIDTH, multilingual: bool = False) -> dict[str, Any]:
    """Make a T5 encoder and its tokenizer, as the components of a pipeline."""
    config, model = (t.UMT5Config, t.UMT5EncoderModel) if multilingual else (t.T5Config, t.T5EncoderModel)
    settings = {"vocab_size": 64, "d_model": width, "d_ff": 37, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    return {f"text_encoder{suffix}": model(config(**settings)), f"tokenizer{suffix}": t5_tokenizer()}


def gemma() -> dict[str, Any]:
    """Make a Gemma 2 language model and its tokenizer, as the components of a pipeline."""
    settings = {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"}
    model = t.Gemma2Model(t.Gemma2Config(vocab_size=64, **settings, **heads))
    return {"text_encoder": model, "tokenizer": gemma_tokenizer()}


def clip_vision() -> t.CLIPVisionModelWithProjection:
    """Make an image encoder."""
    settings = {"hidden_size": WIDTH, "projection_dim": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2}
    return t.CLIPVisionModelWithProjection(
        t.CLIPVisionConfig(**settings, num_attention_heads=4, image_size=16, patch_size=8)
    )


# Denoisers and decoders


def kl(**changes: Any) -> d.AutoencoderKL:
    """Make an autoencoder of factor 2 with four channels."""
    settings: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 8,
    }
    return d.AutoencoderKL(**settings | changes)


UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def unet(**changes: Any) -> d.UNet2DConditionModel:
    """Make a UNet of two levels with cross-attention to a text."""
    blocks = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return d.UNet2DConditionModel(**UNET | blocks | changes)


def betas(scheduler: type, **changes: Any) -> Any:
    """Make a scheduler with Stable Diffusion's schedule."""
    return scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes)


def ddim() -> d.DDIMScheduler:
    """Make Stable Diffusion's scheduler."""
    return betas(d.DDIMScheduler, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def sd(pipeline: type, request: dict[str, Any], **components: Any) -> Entry:
    """Put a pipeline of Stable Diffusion's kind together."""
    common = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    defaults = {"vae": kl(), **clip(), "unet": unet(), "scheduler": ddim()}
    return Entry(pipeline(**defaults | common | components), request)
