"""Load one component of a pipeline from a file of its own: a denoiser, an autoencoder or a text encoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_model import FromOriginalModelMixin
from torch import nn

from diffc.compiler.checkpoint.component_folder import from_tensors
from diffc.compiler.checkpoint.file_kinds import kind_by_tensors
from diffc.compiler.checkpoint.gguf_file import read_gguf
from diffc.compiler.checkpoint.load_errors import LIBRARY_ERRORS, misfit, missing_tensors
from diffc.compiler.checkpoint.quantized_weights import Tensors, dequantized, refuse_leftovers
from diffc.compiler.checkpoint.safetensors_header import read_header, read_tensors
from diffc.compiler.checkpoint.sampling_markers import MARKERS, marked_options
from diffc.compiler.checkpoint.single_file import component_of_file, in_float32, unused_tensors
from diffc.compiler.errors import LoadError
from diffc.compiler.graph.lazy_weights import make_lazy


def component_from_file(
    name: str, component: type[Any], root: Path, path: Path
) -> tuple[nn.Module, list[str], Mapping[str, object]]:
    """Load a component that the pipeline of a folder configures, in diffusers' layout or in its original one.

    Returns the module, the tensors that it does not use, and what the file says of the scheduler.
    """
    stored, metadata = _stored(path)
    marked = marked_options(stored, metadata, str(path))
    tensors = {key: in_float32(t) for key, t in dequantized(stored, str(path), metadata=metadata).items()}
    tensors = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key not in MARKERS}
    try:
        module, report = from_tensors(component, root / name, dict(tensors))
    except LIBRARY_ERRORS as error:
        raise misfit(name, str(path), error) from error
    unused = sorted(report["unexpected_keys"])
    if report["missing_keys"] or report["mismatched_keys"]:
        if not issubclass(component, FromOriginalModelMixin):
            raise missing_tensors(name, report["missing_keys"], str(path))
        module = component_of_file(name, component, tensors, root, path)
        unused = unused_tensors(tensors, {name: component}, root)
    else:
        make_lazy(name, module, str(path))
    refuse_leftovers(unused, stored, str(path))
    return module.eval(), [f"{name}.{key}" for key in unused], marked


def _stored(path: Path) -> tuple[Tensors, Mapping[str, str]]:
    """Return the tensors and the metadata of a GGUF or safetensors file. Raises `LoadError` for an adapter."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                tensors = read_gguf(path)
                _refuse_others(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
                return tensors, {}
    header = read_header(path)
    _refuse_others(path, header.shapes)
    return read_tensors(path), header.metadata


def _refuse_others(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `LoadError` for the tensors of an adapter, or of a model whose values are stored otherwise."""
    kind = kind_by_tensors(shapes)
    if kind is not None and kind.use != "component":
        raise LoadError(f"{path.name} is {kind.name}, not a component", where=str(path), fix=kind.fix)
