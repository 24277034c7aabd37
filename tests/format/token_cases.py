"""Build small tokenizers of the kinds that text encoders have; transformers computes the ids of texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from tests.runtime.conftest import word_tokenizer

WORDS = [
    "a",
    "red",
    "circle",
    "circles",
    "left",
    "of",
    "large",
    "blue",
    "square",
    "above",
    "green",
    "small",
    "triangle",
    "st",
    "nd",
]
TEXTS = [
    "",
    " ",
    "a red circle",
    "  A  RED\tcircle,\n left-of a blue square! ",
    "it's 1st & 22nd (no 3)...",
    "ein roter Kreis über größeren Kästen",
    "красный круг",
    "青い四角の左にある赤い円",
    "دائرة حمراء",
    "🔴👩\u200d👩\u200d👧 e\u0301 ﬁ Ⅳ \u00a0x",
    "a <|endoftext|> b </s> c <bos>d",
    "red circle " * 20,
    "x" * 60,
]
PAD = {
    "words": "<end>",
    "clip": "<|endoftext|>",
    "unigram": "<pad>",
    "byte-level": "<|endoftext|>",
    "byte-fallback": "<pad>",
}
"""The special token that each tokenizer pads with, where transformers pads."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizers split a text."""


def merges(prefix: str = "", suffix: str = "") -> list[tuple[str, str]]:
    """List merges that join each word from its first letter to its last, all of them different."""
    pairs = []
    for word in WORDS:
        letters = [*prefix, *word]
        letters[-1] += suffix
        pairs += [("".join(letters[:at]), letters[at]) for at in range(1, len(letters))]
    return list(dict.fromkeys(pairs))


def vocabulary(first: list[str], pairs: list[tuple[str, str]]) -> dict[str, int]:
    """Number the tokens: the first ones, and then what merges join."""
    return {token: at for at, token in enumerate(dict.fromkeys([*first, *("".join(pair) for pair in pairs)]))}


def clip() -> Tokenizer:
    """Build a tokenizer like CLIP's: lower case, byte-level BPE with an end of word."""
    letters, pairs = sorted(pre_tokenizers.ByteLevel.alphabet()), merges(suffix="</w>")
    first = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return Tokenizer.from_str(CLIPTokenizer(vocabulary(first, pairs), pairs).backend_tokenizer.to_str())


def unigram() -> Tokenizer:
    """Build a tokenizer like T5's: NFKC, Metaspace, Unigram, an end token."""
    pieces = (
        "▁ ▁a ▁red ▁circle cir cle ▁square ▁blue ▁left ▁of of ed re le ir e a r d c i l s b u q n t f h o ' 1 2 . -"
    )
    scored = [(piece, -2.0 - at / 8) for at, piece in enumerate(pieces.split())]
    library = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored], unk_id=2))
    library.add_special_tokens(["<pad>", "</s>", "<unk>"])
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return library


def byte_level() -> Tokenizer:
    """Build a tokenizer like Qwen's: NFC, byte-level BPE, no special tokens around the text."""
    pairs = merges(prefix="Ġ") + merges()
    first = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    library = Tokenizer(models.BPE(vocabulary(first, pairs), pairs))
    library.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    library.add_special_tokens(["<|endoftext|>"])
    return library


def byte_fallback() -> Tokenizer:
    """Build a tokenizer like Gemma's: spaces as marks, BPE that falls back to bytes, a start token."""
    pairs = merges(prefix="▁") + merges()
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    first = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    library = Tokenizer(
        models.BPE(vocabulary(first, pairs), pairs, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    library.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    library.add_special_tokens(special)
    return library


def tokenizers() -> dict[str, str]:
    """Return each tokenizer as the text of a bundle's file."""
    kinds = {"clip": clip(), "unigram": unigram(), "byte-level": byte_level(), "byte-fallback": byte_fallback()}
    return {"words": word_tokenizer(), **{name: library.to_str() for name, library in kinds.items()}}


def token_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each case, and its texts and ids."""
    for name, text in tokenizers().items():
        for length, pad, template in ((12, 1, "{}"), (3, 0, "{}"), (24, 7, "a {} circle")):
            library = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text))
            filled = [template.replace("{}", each) for each in TEXTS]
            rows = library(filled, max_length=length, truncation=True)["input_ids"]
            ids = [row + [pad] * (length - len(row)) for row in rows]
            mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
            entry = {"tokenizer": f"{name}.json", "length": length, "pad": pad, "template": template, "texts": TEXTS}
            yield f"{name} {length}", entry | {"ids": ids, "mask": mask}
        for padding_side, truncation_side in (("left", "right"), ("right", "left"), ("left", "left")):
            sides = {"padding_side": padding_side, "truncation_side": truncation_side}
            library = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), pad_token=PAD[name], **sides)
            rows = library(TEXTS, max_length=9, padding="max_length", truncation=True)
            entry = {"tokenizer": f"{name}.json", "length": 9, "pad": library.pad_token_id, **sides, "texts": TEXTS}
            columns = {"ids": rows["input_ids"], "mask": rows["attention_mask"]}
            yield f"{name} padded {padding_side}, cut {truncation_side}", entry | columns
