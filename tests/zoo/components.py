"""Assemble the tokenizers, encoders, denoisers and decoders that pipelines of the zoo share."""

from collections.abc import Iterable
from string import ascii_lowercase
from typing import Any

import diffusers as d
import transformers as t
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from torch import nn

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


def gemma_tokenizer(**options: Any) -> t.GemmaTokenizer:
    """Make a BPE with spaces written as ▁ that knows letters."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *ascii_lowercase]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    return t.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=LENGTH, **options)


# Words of system prompts, one token each, as in the tokenizers of published language models.
SYSTEM_WORDS = """
Describe describing determine detailing by the a an of in and to with is are or you your system user assistant
color shape size texture quantity text spatial relationships objects background image images video photo picture
following aspects main content theme Actions events behaviors temporal physical movement changes environment
light style atmosphere camera angles movements transitions used according reference helpful key features input
then explain how should alter modify Generate generate new that meets requirements while maintaining consistency
original where appropriate superior degree alignment based on textual prompts prompt Prompt Start Picture
designed high quality highest short detailed
"""
SPECIAL_WORDS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def merged(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return the merges that make a token of each word, from its first letter on."""
    return list(dict.fromkeys((word[:n], word[n]) for word in words for n in range(1, len(word))))


def qwen_tokenizer(**options: Any) -> t.Qwen2Tokenizer:
    """Make a byte-level BPE that knows every byte and the words of system prompts, with a template of chats."""
    merges = merged(prefix + word for word in (*SYSTEM_WORDS.split(), *WORDS) for prefix in ("Ġ", ""))
    pieces = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges), "<|endoftext|>", *SPECIAL_WORDS]
    return t.Qwen2Tokenizer(
        vocab={piece: n for n, piece in enumerate(dict.fromkeys(pieces))},
        merges=merges,
        extra_special_tokens=list(SPECIAL_WORDS),
        chat_template=CHAT,
        **options,
    )


def glm_tokenizer() -> t.PreTrainedTokenizerFast:
    """Make a byte-level BPE that begins each text with two tokens of its own, and pads on the left."""
    special = ["<|endoftext|>", "[gMASK]", "<sop>"]
    pieces = {piece: n for n, piece in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    tokenizer = Tokenizer(BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[(token, pieces[token]) for token in special[1:]]
    )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=special[1:],
        padding_side="left",
    )


def llama_tokenizer(**options: Any) -> t.LlamaTokenizer:
    """Make a BPE with spaces written as ▁ and bytes for what it does not know."""
    special = ["<unk>", "<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", "<pad>"]
    merges = merged(f"▁{word}" for word in (*SYSTEM_WORDS.split(), *WORDS))
    letters = [*map(chr, range(32, 127)), "▁"]
    pieces = [*special, *(f"<0x{n:02X}>" for n in range(256)), *letters, *("".join(pair) for pair in merges)]
    return t.LlamaTokenizer(
        vocab={piece: n for n, piece in enumerate(dict.fromkeys(pieces))},
        merges=merges,
        pad_token="<pad>",
        extra_special_tokens=special[3:-1],
        **options,
    )


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


LANGUAGE_MODEL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # embeddings of trained models are not near zero
}


def image_token_ids(tokenizer: t.Qwen2Tokenizer) -> dict[str, int]:
    """Return the tokens around an image, as the configuration of a model that sees has them."""
    image, start, end = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"])
    return {"image_token_id": image, "vision_start_token_id": start, "vision_end_token_id": end}


def qwen_2_5_config(tokenizer: t.Qwen2Tokenizer, layers: int = 2) -> t.Qwen2_5_VLConfig:
    """Describe a Qwen 2.5 that sees, of a vision tower and some layers of language."""
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    language = LANGUAGE_MODEL | {"vocab_size": len(tokenizer), "num_hidden_layers": layers, "rope_parameters": rotary}
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 37, "patch_size": 14}
    vision |= {"out_hidden_size": WIDTH, "fullatt_block_indexes": [1]}
    return t.Qwen2_5_VLConfig(text_config=language, vision_config=vision, **image_token_ids(tokenizer))


def qwen_2_5() -> dict[str, Any]:
    """Make a Qwen 2.5 that sees and its tokenizer, as the components of a pipeline."""
    tokenizer = qwen_tokenizer()
    model = t.Qwen2_5_VLForConditionalGeneration(qwen_2_5_config(tokenizer))
    return {"text_encoder": model, "tokenizer": tokenizer}


def qwen_3(causal: bool = False) -> dict[str, Any]:
    """Make a Qwen 3 and its tokenizer, as the components of a pipeline."""
    tokenizer = qwen_tokenizer()
    config = t.Qwen3Config(**LANGUAGE_MODEL, head_dim=8, vocab_size=len(tokenizer))
    return {"text_encoder": (t.Qwen3ForCausalLM if causal else t.Qwen3Model)(config), "tokenizer": tokenizer}


def llama(**options: Any) -> dict[str, Any]:
    """Make a Llama of three layers and its tokenizer, as the components of a pipeline."""
    tokenizer = llama_tokenizer(**options)
    settings = LANGUAGE_MODEL | {"num_hidden_layers": 3, "pad_token_id": tokenizer.pad_token_id}
    model = t.LlamaModel(t.LlamaConfig(**settings, vocab_size=len(tokenizer)))
    return {"text_encoder": model, "tokenizer": tokenizer}


def byt5(suffix: str = "_2") -> dict[str, Any]:
    """Make a T5 encoder that reads bytes and its tokenizer, as the components of a pipeline."""
    tokenizer = t.ByT5Tokenizer(extra_ids=0)
    settings = {"d_model": WIDTH, "d_ff": 37, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    model = t.T5EncoderModel(t.T5Config(vocab_size=len(tokenizer), **settings))
    return {f"text_encoder{suffix}": model, f"tokenizer{suffix}": tokenizer}


def clip_vision(image_size: int = 16, patch_size: int = 8) -> t.CLIPVisionModelWithProjection:
    """Make an image encoder."""
    settings = {"hidden_size": WIDTH, "projection_dim": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2}
    return t.CLIPVisionModelWithProjection(
        t.CLIPVisionConfig(**settings, num_attention_heads=4, image_size=image_size, patch_size=patch_size)
    )


# Denoisers and decoders


def amplified(denoiser: Any, factor: float = 2.0) -> Any:
    """Enlarge the linear layers of a denoiser whose images would hardly depend on the prompt; return it.

    Random weights attend to all tokens alike: images of two prompts must differ by far more than a tolerance.
    """
    for module in denoiser.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= factor
    return denoiser


def flow(**options: Any) -> d.FlowMatchEulerDiscreteScheduler:
    """Make the scheduler of most flow-matching models, whose schedule depends on the size of the image."""
    return d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, **options)


def flow_kl(**changes: Any) -> d.AutoencoderKL:
    """Make an autoencoder as flow-matching models have it, with a shift and without convolutions around the latents."""
    return kl(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5, **changes)


def kl(**changes: Any) -> d.AutoencoderKL:
    """Make an autoencoder of factor 2 with four channels."""
    settings: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 8,
    }
    return d.AutoencoderKL(**settings | changes)


def movq() -> d.VQModel:
    """Make the autoencoder of Kandinsky's, whose decoder reads the latents at each level."""
    return d.VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 32),
        latent_channels=4,
        num_vq_embeddings=12,
        norm_num_groups=8,
        vq_embed_dim=4,
        norm_type="spatial",
    )


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
