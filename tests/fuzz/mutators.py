"""Mutate contents at random: bytes, JSON, texts, safetensors headers. The same generator gives the same mutation."""

from __future__ import annotations

import copy
import json
import re
from random import Random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 0.0, -0.5, 1e-300, 1e300, float("nan"), float("inf")),
    *("", "a", "\0", "\x1b[31m", "../x", "/etc/passwd", "x" * 70_000, "ü\U0001f600", "nan", "[]"),
    *([], {}, [[]], [1, 2], [None], {"": 0}, {"a": {"a": {"a": 1}}}),
)
TOKENS = re.compile(r"[\w.]+|\S")


def mutated_bytes(random: Random, content: bytes) -> bytes:
    """Flip, drop, repeat, insert or zero some bytes, or cut the end off."""
    if not content:
        return random.randbytes(random.randint(1, 16))
    start = random.randrange(len(content))
    length = min(len(content) - start, random.choice((1, 1, 1, 4, 16, 256)))
    stop = start + length
    part = content[start:stop]
    match random.randrange(7):
        case 0:
            put = bytes([part[0] ^ 1 << random.randrange(8)]) + part[1:]
        case 1:
            put = b""
        case 2:
            put = part * random.choice((2, 3, 100))
        case 3:
            put = random.randbytes(length)
        case 4:
            put = bytes(length)
        case 5:
            put = part + random.randbytes(random.randint(1, 8))
        case _:
            return content[:start]
    return content[:start] + put + content[stop:]


def mutated_json(random: Random, value: Any) -> Any:
    """Change one entry of a JSON value, at any depth: remove it, rename it, or put an odd or another value there."""
    root = copy.deepcopy(value)
    places = [(holder, key) for holder in _holders(root) for key in _keys(holder)]
    if not places:
        return random.choice(ODD_VALUES)
    holder, key = random.choice(places)
    match random.randrange(5):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice((str(key) + "_", "", "file", str(key)[::-1]))] = holder.pop(key)
        case 2:
            source, at = random.choice(places)
            holder[key] = copy.deepcopy(source[at]) if at in _keys(source) else None
        case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * random.choice((-1, 2, 0.5)) + random.choice((0, 1))
        case _:
            holder[key] = random.choice(ODD_VALUES)
    return root


def mutated_text(random: Random, text: str) -> str:
    """Swap, drop, repeat or replace tokens or lines of a text."""
    tokens = list(TOKENS.finditer(text))
    if not tokens or random.random() < 0.2:
        lines = text.splitlines(keepends=True)
        random.shuffle(lines) if random.random() < 0.3 else lines.insert(0, random.choice(lines or [""]))
        return "".join(lines)
    here, there = random.choice(tokens), random.choice(tokens)
    put = random.choice((there[0], "", here[0] * 2, "-1", "9" * 30, "nan", "inf", "x", "[", ")", "none", '"'))
    return text[: here.start()] + put + text[here.end() :]


def mutated_safetensors(random: Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, and keep its length right; or change bytes anywhere."""
    size = int.from_bytes(content[:8], "little")
    if random.random() < 0.3 or size > len(content) - 8:
        return mutated_bytes(random, content)
    header = json.dumps(mutated_json(random, json.loads(content[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _holders(value: Any) -> list[Any]:
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    below = [holder for entry in entries for holder in _holders(entry)]
    return [value, *below] if isinstance(value, dict | list) else below


def _keys(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))
