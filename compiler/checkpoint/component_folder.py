"""Load one component of a diffusers folder: by the library, or of tensors whose values another tool quantized."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from json import loads
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import diffusers
import torch
import transformers
from diffusers.models.model_loading_utils import load_model_dict_into_meta
from torch import nn

from diffc.compiler.checkpoint.load_errors import LIBRARY_ERRORS, misfit, missing_tensors, wrong_shape
from diffc.compiler.checkpoint.quantized_weights import dequantized, refuse_leftovers
from diffc.compiler.checkpoint.safetensors_header import PICKLE_SUFFIXES, read_header, read_tensors
from diffc.compiler.errors import LoadError
from diffc.compiler.graph.lazy_weights import make_lazy

QUANTIZATION = "quantization_config"
WEIGHTS = re.compile(
    r"(?P<stem>[^.]+?)(?P<shard>-\d{5}-of-\d{5})?(\.(?P<variant>[^.]+?)(?P<part>-\d{5}-of-\d{5})?)?\.safetensors"
)
"""The name of a weight file: what the library calls its files, a variant such as ``fp16``, the number of a shard."""


def module_of_folder(name: str, component: type[Any], root: Path) -> tuple[nn.Module, list[str]]:
    """Load one component, and list the tensors of its files that it does not use."""
    if _is_container(component):
        return _container_of_folders(name, component, root)
    folder = root / name
    variant, files = _weight_files(name, component, folder)
    headers = [read_header(path) for path in files]
    method = _quantization_config(folder)
    stored: Mapping[str, torch.Tensor] = {}
    try:
        if method is None and all(header.is_of_floats for header in headers):
            module, report = _from_files(component, folder, variant)
        else:
            stored = {key: tensor for path in files for key, tensor in read_tensors(path).items()}
            metadata = {key: text for header in headers for key, text in header.metadata.items()}
            module, report = from_tensors(component, folder, dequantized(stored, str(folder), method, metadata))
    except LIBRARY_ERRORS as error:
        raise misfit(name, str(folder), error) from error
    for key, shape, configured in sorted(report["mismatched_keys"]):
        raise wrong_shape(f"{name}.{key}", list(shape), list(configured), str(folder))
    if report["missing_keys"]:
        raise missing_tensors(name, report["missing_keys"], str(folder))
    refuse_leftovers(report["unexpected_keys"], stored, str(folder))
    make_lazy(name, module, str(folder))
    return module, [f"{name}.{key}" for key in sorted(report["unexpected_keys"])]


def _from_files(component: type[Any], folder: Path, variant: str | None) -> tuple[nn.Module, Mapping[str, Any]]:
    """Load a module and the library's report of its tensors, from files that the library finds."""
    options: dict[str, Any] = {"variant": variant, "use_safetensors": True, "local_files_only": True}
    if issubclass(component, transformers.PreTrainedModel):
        options["ignore_mismatched_sizes"] = True  # the report lists them then; diffusers names them in its error
    loaded: tuple[nn.Module, Mapping[str, Any]]
    loaded = component.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    return loaded


def from_tensors(
    component: type[Any], folder: Path, tensors: dict[str, torch.Tensor]
) -> tuple[nn.Module, Mapping[str, Any]]:
    """Load a module of a folder's configuration and of tensors, and report on them as both libraries do."""
    if issubclass(component, transformers.PreTrainedModel):
        config = component.config_class.from_pretrained(folder, local_files_only=True)
        vars(config).pop("quantization_config", None)
        loaded: tuple[nn.Module, Mapping[str, Any]] = component.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        return loaded
    options = component.load_config(folder, local_files_only=True)
    with accelerate.init_empty_weights():
        module = component.from_config({key: value for key, value in options.items() if key != QUANTIZATION})
    module._fix_state_dict_keys_on_load(tensors)
    load_model_dict_into_meta(module, tensors, dtype=torch.float32)
    keys = module.state_dict().keys()
    report = {"missing_keys": keys - tensors.keys(), "unexpected_keys": tensors.keys() - keys, "mismatched_keys": []}
    return module, report


def _quantization_config(folder: Path) -> dict[str, Any] | None:
    """Return the entry for quantization in a component's configuration."""
    try:
        method = loads((folder / "config.json").read_bytes()).get(QUANTIZATION)
    except (ValueError, AttributeError, OSError):  # the library says what is wrong with it
        return None
    return method if isinstance(method, dict) else None


def _is_container(component: type[Any]) -> bool:
    """Return whether a model has no configuration: it holds other models, which diffusers saves one by one."""
    return issubclass(component, diffusers.ModelMixin) and not issubclass(component, diffusers.ConfigMixin)


def _container_of_folders(name: str, component: type[Any], root: Path) -> tuple[nn.Module, list[str]]:
    """Load the models of ``name``, ``name_1`` and so on, of the classes that their configurations name."""
    others = itertools.takewhile(lambda part: (root / part).is_dir(), (f"{name}_{n}" for n in itertools.count(1)))
    loaded = [module_of_folder(part, _class_of_config(part, root), root) for part in (name, *others)]
    return component([module for module, _ in loaded]), [key for _, unused in loaded for key in unused]


def _class_of_config(name: str, root: Path) -> type[Any]:
    path = root / name / "config.json"
    try:
        class_name = loads(path.read_text(encoding="utf-8"))["_class_name"]
        class_ = getattr(diffusers, class_name, None)
    except (ValueError, LookupError, TypeError, OSError) as error:
        fix = "restore the file as diffusers saved it"
        raise LoadError(f"{name} has no configuration that names a class", where=str(path), fix=fix) from error
    if not isinstance(class_, type) or not issubclass(class_, diffusers.ModelMixin) or _is_container(class_):
        what = f"diffusers {diffusers.__version__} has no model {class_name!r}"
        raise LoadError(what, where=str(path), fix="install a version of diffusers that has it")
    return class_


def _weight_files(name: str, component: type[Any], folder: Path) -> tuple[str | None, list[Path]]:
    """Find the files of a component's weights and their variant, such as ``fp16``; None where there are plain ones."""
    is_of_transformers = issubclass(component, transformers.PreTrainedModel)
    expected = transformers.utils.SAFE_WEIGHTS_NAME if is_of_transformers else diffusers.utils.SAFETENSORS_WEIGHTS_NAME
    stem = expected.removesuffix(".safetensors")
    matches = {path: WEIGHTS.fullmatch(path.name) for path in sorted(folder.glob("*.safetensors"))}
    named = {path: match for path, match in matches.items() if match and match["stem"] == stem}
    if not named:
        raise _no_weights(name, folder, expected)
    variants = {match["variant"] for match in named.values()}
    variant = min(variants, key=lambda each: (each is not None, each != "fp16", each != "bf16", each or ""))
    files = [path for path, match in named.items() if match["variant"] == variant]
    shards = [path for path in files if named[path]["shard"] or named[path]["part"]]
    single = [path for path in files if path not in shards]
    return variant, (single or shards) if is_of_transformers else (shards or single)


def _no_weights(name: str, folder: Path, expected: str) -> LoadError:
    """Return the error for a component without weights, which names the files that are there instead."""
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        fix = "get the .safetensors files of the model; a pickle can run code when it is read"
        return LoadError(f"{name} comes as a pickle only: {pickles[0].name}", where=str(folder), fix=fix)
    files = [path.name for path in sorted(folder.glob("*.safetensors"))]
    instead = f": {', '.join(files[:3])} is not {expected}" if files else ""
    fix = "add its .safetensors file; the folder may be the configuration alone"
    return LoadError(f"{name} has no weights{instead}", where=str(folder), fix=fix)
