"""Convert a single file in the original layout, as Stable Diffusion was published, component by component.

The conversion is that of diffusers, which does not report all missing and unused tensors. So where the counts differ
it runs once more, on tensors filled with their own index: the indices in its results show which tensors it used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.loaders.single_file import load_single_file_sub_model
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from diffc.compiler.checkpoint.load_errors import LIBRARY_ERRORS, misfit, missing_tensors
from diffc.compiler.checkpoint.safetensors_header import (
    CONFIG_KEY,
    CONFIG_SUFFIXES,
    Header,
    config_of_folder,
    config_of_metadata,
)
from diffc.compiler.errors import LoadError
from diffc.compiler.graph.lazy_weights import LazyWeight, Weight, lazy_weight, make_lazy, weight_of


def config_of_file(header: Header, tensors: Mapping[str, torch.Tensor], *, online: bool) -> dict[str, bytes]:
    """Find a single file's configuration: in the file, in a folder beside it, or in the local Hugging Face cache."""
    beside = header.path.with_suffix(".config")
    if files := config_of_metadata(header):
        return files
    if beside.is_dir():
        return config_of_folder(beside)
    repository = str(fetch_diffusers_config(tensors)["pretrained_model_name_or_path"])
    patterns = [f"*{suffix}" for suffix in CONFIG_SUFFIXES]
    try:
        cached = snapshot_download(repository, allow_patterns=patterns, local_files_only=not online)
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        what = f"{header.path.name} brings no configuration: neither metadata key {CONFIG_KEY} nor {beside.name}/"
        fix = f"put a diffusers folder without weights at {beside}, or give --online to fetch that of {repository}"
        raise LoadError(what, where=str(header.path), fix=fix) from error
    return config_of_folder(Path(cached))


def in_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return a lazy weight in float32 of a stored tensor; integers, and what is lazy, as they are."""
    is_stored = tensor.is_floating_point() and not isinstance(tensor, LazyWeight)
    return lazy_weight(Weight(tensor, torch.float32)) if is_stored else tensor


def component_of_file(
    name: str, component: type[Any], tensors: Mapping[str, torch.Tensor], folder: Path, path: Path
) -> nn.Module:
    """Convert one component's tensors from their original layout, and return the component."""
    try:
        module = _convert(name, component, tensors, folder)
    except SingleFileComponentError as error:
        fix = "give a whole checkpoint, or a diffusers folder with all components"
        what = f"{path.name} has no weights for {name} ({component.__name__})"
        raise LoadError(what, where=str(path), fix=fix) from error
    except NotImplementedError as error:  # parameters without a tensor stay without data
        raise missing_tensors(name, _unwritten_parameters(name, component, tensors, folder), str(path)) from error
    except KeyError as error:
        raise missing_tensors(name, [str(error.args[0])], str(path)) from error
    except LIBRARY_ERRORS as error:
        raise misfit(name, str(path), error) from error
    if without_data := [key for key, tensor in module.state_dict().items() if tensor.is_meta]:
        raise missing_tensors(name, without_data, str(path))
    make_lazy(name, module, str(path))
    return module.eval()


def _convert(
    name: str, component: type[Any], tensors: Mapping[str, torch.Tensor], folder: Path, **options: Any
) -> nn.Module:
    module: nn.Module = load_single_file_sub_model(
        library_name=component.__module__,
        class_name=component.__name__,
        name=name,
        checkpoint=dict(tensors),
        pipelines=diffusers.pipelines,
        is_pipeline_module=False,
        cached_model_config_path=str(folder),
        local_files_only=True,
        torch_dtype=torch.float32,
        **options,
    )
    return module


def _numbered(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return lazy tensors of the same shapes, the i-th filled with i + 2, which survives a conversion."""
    return {
        name: lazy_weight(Weight(torch.full((), number, dtype=torch.float32).expand(tensor.shape), torch.float32))
        for number, (name, tensor) in enumerate(tensors.items(), start=2)
    }


def _indices(tensor: torch.Tensor) -> set[float]:
    stored = weight_of(tensor).source
    low, high = map(float, stored.aminmax())
    return {low} if low == high else set(np.unique(stored.numpy()).tolist())


def unused_tensors(tensors: Mapping[str, torch.Tensor], components: Mapping[str, type[Any]], folder: Path) -> list[str]:
    """List the tensors of a single file that no component uses."""
    seen: set[float] = set()
    for name, component in components.items():
        module = _convert(name, component, _numbered(tensors), folder)
        for tensor in module.state_dict().values():
            seen |= _indices(tensor) if tensor.numel() else set()
    return [name for number, name in enumerate(tensors, start=2) if number not in seen]


def _unwritten_parameters(
    name: str, component: type[Any], tensors: Mapping[str, torch.Tensor], folder: Path
) -> list[str]:
    """List a component's parameters that no tensor of a single file is converted to."""
    module = _convert(name, component, _numbered(tensors), folder, low_cpu_mem_usage=False)
    indices = {float(number) for number in range(2, len(tensors) + 2)}
    return [key for key, tensor in module.state_dict().items() if not _indices(tensor) <= indices]
