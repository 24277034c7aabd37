"""Read the options of quantization: ``--quant`` names the techniques, ``--recipe`` a file with specs and layers too.

# recipe.toml
[quantize]
methods = "smoothquant:alpha=0.5+gptq"      # as --quant takes them
linear = ["int4:group=64", "int8:token"]    # a weight and its activation, in the denoiser
conv = ["int8:channel", "uint8:tensor"]
attention = ["int8:tensor", "float"]        # queries and keys; probabilities and values

[[layer]]
name = "unet.down_blocks.0.*"               # a layer, or a pattern of layers, as the report names them
weight = "int8:channel"
activation = "float"
"""

from __future__ import annotations

import difflib
import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffc.compiler.errors import RecipeError
from diffc.compiler.quantization.formats import Spec, parse_spec
from diffc.compiler.recipe import Pass, optional

KEYS = {
    "quantize": ("methods", "linear", "conv", "attention", "other"),
    "layer": ("name", "weight", "activation", "output", "probabilities", "values"),
}


@dataclass(frozen=True)
class Override:
    """Hold the specs that replace those of the layers that a pattern matches."""

    pattern: str
    specs: Mapping[str, Spec | None]


@dataclass(frozen=True)
class RecipeFile:
    """Hold a recipe: settings that replace those of a precision, and overrides of layers, of which the last wins."""

    settings: Mapping[str, Any]
    overrides: tuple[Override, ...] = ()


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe. Raises `RecipeError` for a file that is none, with the key or the word that is unknown."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        fix = "use a TOML file with [quantize] and [[layer]]"
        raise RecipeError(f"{path} cannot be read: {error}", fix=fix) from error
    _check_keys(entries, KEYS, str(path))
    settings, layers = entries.get("quantize", {}), entries.get("layer", [])
    if not isinstance(settings, dict) or not isinstance(layers, list):
        raise RecipeError(f"{path} is no recipe", fix="write [quantize] and [[layer]]")
    _check_keys(settings, KEYS["quantize"], f"{path}: [quantize]")
    for key, value in settings.items():
        if key == "methods" and not isinstance(value, str):
            raise RecipeError(f"methods is {value!r}", where=str(path), fix='write methods = "smoothquant+gptq"')
        if key != "methods" and not (isinstance(value, list) and len(value) == 2 and _are_texts(value)):
            raise RecipeError(f"{key} is {value!r}", where=str(path), fix=f'write {key} = ["WEIGHT", "ACTIVATION"]')
        for text in value if key != "methods" else []:
            parse_spec(text)
    return RecipeFile(settings, tuple(_override(layer, str(path)) for layer in layers))


def _are_texts(items: Iterable[object]) -> bool:
    return all(isinstance(item, str) for item in items)


def _override(layer: Any, where: str) -> Override:
    if not isinstance(layer, dict) or not _are_texts(layer.values()) or "name" not in layer:
        raise RecipeError(f"{layer!r} is no layer", where=where, fix="write [[layer]] with a name and its specs")
    _check_keys(layer, KEYS["layer"], f"{where}: [[layer]]")
    return Override(layer["name"], {key: parse_spec(text) for key, text in layer.items() if key != "name"})


def _check_keys(entries: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in entries:
        if key not in (known := tuple(known)):
            raise RecipeError(
                f"{key!r} says nothing", where=where, fix=f"{nearest(key, known)}known: {', '.join(known)}"
            )


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the known words that a misspelt one resembles."""
    return "".join(f"did you mean {close}? " for close in difflib.get_close_matches(word, list(known), n=1, cutoff=0.4))


def matching(override: Override, names: Sequence[str]) -> set[str]:
    """List the layers that an override is for. Raises `RecipeError` where there are none."""
    matches = {name for name in names if fnmatchcase(name, override.pattern)}
    if not matches:
        fix = f"{nearest(override.pattern, names)}diffc inspect lists the layers of a quantized bundle"
        raise RecipeError(f"no layer is named {override.pattern!r}", where="[[layer]]", fix=fix)
    return matches


def parse_passes(
    text: str,
    known: Mapping[str, Callable[..., Any]],
    option: str,
    what: str = "technique",
    former: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Pass[Any], ...]:
    """Return the passes that a text names, as ``smoothquant?:alpha=0.5+gptq``. Raises `RecipeError`.

    A pass whose name ends with ``?`` may change nothing. A comma separates options as well as a colon does, a hyphen
    stands for an underscore, and a number may end in ``dB``. ``option`` is the flag that the text belongs to,
    ``former`` maps names that passes had to those that they have.
    """
    passes = list[Pass[Any]]()
    for part in text.split("+"):
        is_optional = re.split("[:,]", part.strip())[0].endswith("?")
        name, options = _parsed(part.replace("?", "", 1) if is_optional else part, tuple(known), text, what, former)
        check_options(name, known[name], options, option)
        rewrite = partial(known[name], **options) if options else known[name]
        passes.append(optional(rewrite) if is_optional else rewrite)
    return tuple(passes)


def _parsed(
    part: str, known: Sequence[str], text: str, what: str, former: Mapping[str, str]
) -> tuple[str, dict[str, Any]]:
    """Return one name and its options."""
    names = {name.replace("-", "_"): name for name in known} | dict(former)
    name, *options = re.split("[:,]", part.strip())
    if name.replace("-", "_") not in names:
        fix = f"{nearest(name, known)}known: {', '.join(known)}"
        raise RecipeError(f"{name!r} is no {what}", where=text, fix=fix)
    return names[name.replace("-", "_")], dict(_option(option, text, what) for option in options)


def _option(text: str, where: str, what: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.replace("-", "_")
    if not equals or not key.isidentifier():
        raise RecipeError(f"{text!r} is no option", where=where, fix=f"write {what.upper()}:option=value")
    for kind in (int, float):
        try:
            return key, kind(value.removesuffix("dB"))
        except ValueError:
            continue
    return key, {"true": True, "false": False}.get(value, value)


def check_options(name: str, function: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    """Raise `RecipeError` where a technique has no such option, or one of another type."""
    parameters = inspect.signature(function).parameters
    known = {key: parameter for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    for key, value in options.items():
        if key not in known:
            takes = ", ".join(known) or "none"
            raise RecipeError(f"{name} has no option {key!r}", where=where, fix=f"{nearest(key, known)}it has {takes}")
        default = known[key].default
        types = (int, float) if default is None or isinstance(default, float) else (type(default),)
        if not isinstance(value, types) or isinstance(value, bool) != isinstance(default, bool):
            raise RecipeError(f"{name}: {key} is {value!r}", where=where, fix=f"give a value such as {default}")
