"""Load a checkpoint as a diffusers pipeline: in float32, for inference, offline, without unpickling or foreign code."""

from __future__ import annotations

import inspect
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import dumps, loads
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import diffusers
import torch
import transformers
from torch import nn

from diffc.compiler.checkpoint.component_file import component_from_file
from diffc.compiler.checkpoint.component_folder import module_of_folder
from diffc.compiler.checkpoint.file_kinds import kind_by_tensors
from diffc.compiler.checkpoint.load_errors import LIBRARY_ERRORS, listed
from diffc.compiler.checkpoint.model_index import (
    INDEX,
    UNUSED,
    components_of,
    neural_components,
    pipeline_class,
    read_index,
)
from diffc.compiler.checkpoint.quantized_weights import dequantized, refuse_leftovers
from diffc.compiler.checkpoint.safetensors_header import (
    Header,
    read_header,
    read_tensors,
    refuse_partial_models,
    write_config,
)
from diffc.compiler.checkpoint.sampling_markers import MARKERS, follow_markers, marked_options
from diffc.compiler.checkpoint.scheduler_choice import new_scheduler
from diffc.compiler.checkpoint.single_file import component_of_file, config_of_file, in_float32, unused_tensors
from diffc.compiler.checkpoint.source_path import check_source
from diffc.compiler.checkpoint.tasks import TASKS
from diffc.compiler.checkpoint.tokenizer_check import check_tokenizer, refuse_pieces
from diffc.compiler.checkpoint.unread_files import refuse_other_folders, unread_files
from diffc.compiler.errors import DiffcWarning, LoadError, first_line
from diffc.compiler.graph.lazy_weights import materialize, postponed, read

ENCODER = "image_encoder"
ADAPTER_WEIGHTS = re.compile(r"\.(weight|bias|latents)$")
"""The ends of the names of the tensors that diffusers reads of an IP-Adapter."""

Modules = dict[str, nn.Module]


def load(
    source: Path | str,
    *,
    sampler: str | None = None,
    task: str = "text-to-image",
    ip_adapter: Path | str | None = None,
    component_files: Mapping[str, Path | str] = MappingProxyType({}),
    online: bool = False,
    lazy_weights: bool = False,
) -> diffusers.DiffusionPipeline:
    """Load a diffusers folder, or a single ``.safetensors`` file in its original layout.

    ``sampler`` replaces the checkpoint's scheduler. ``ip_adapter`` is the ``.safetensors`` file of an IP-Adapter; an
    image encoder that the checkpoint lacks is taken from ``image_encoder/`` beside it. ``component_files`` are the
    files, GGUF or safetensors, of components that replace those of a folder. Only ``online`` allows
    the network, and only to fetch the configuration of a single file that has none. With ``lazy_weights``, large
    weights are lazy (`diffc.compiler.graph.lazy_weights`): the pipeline can be traced but not run. A `DiffcWarning`
    names tensors that no component uses. Raises `LoadError` where the checkpoint is damaged, incomplete, unsafe or not
    a model, and where a name is unknown.
    """
    if task not in TASKS:
        raise LoadError(f"unknown task {task!r}", fix=f"choose one of {', '.join(TASKS)}")
    path = Path(source)
    check_source(path)
    with quiet():
        with postponed():
            pipeline, unused, marked = (
                _load_folder(path, component_files)
                if path.is_dir()
                else _load_file(path, component_files, online=online)
            )
            if ip_adapter is not None:
                unused += _add_ip_adapter(pipeline, Path(ip_adapter))
        if not lazy_weights:
            for component in pipeline.components.values():
                if isinstance(component, nn.Module):
                    materialize(component)
        pipeline = _for_task(pipeline, task, path)
        if sampler is not None:
            pipeline.scheduler = new_scheduler(sampler, _scheduler_of(pipeline, path))
        if marked:
            pipeline.scheduler = follow_markers(_scheduler_of(pipeline, path), marked, str(path))
    for sentence in _left_out(path, pipeline, unused):
        warnings.warn(f"{path.name}: {sentence}", DiffcWarning, stacklevel=2)
    return pipeline


def _left_out(path: Path, pipeline: Any, unused: list[str]) -> Iterator[str]:
    """Name the tensors that no component uses, and the files of a folder that none reads."""
    modules = [name for name, component in pipeline.components.items() if isinstance(component, nn.Module)]
    if parts := [name for name in UNUSED if (path / name / "config.json").exists()]:
        yield f"left out, since it works on images after sampling: {', '.join(parts)}"
    if path.is_dir() and (unread := unread_files(path, modules)):
        yield f"not read: {listed(unread, 'file')}"
    if unused:
        yield f"no component uses {listed(unused)}"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the logs and progress bars of both libraries: faults that they log are checked here and raised."""
    libraries = [
        (library.utils.logging, library.utils.logging.get_verbosity()) for library in (diffusers, transformers)
    ]
    bars = [logging.is_progress_bar_enabled() for logging, _ in libraries]
    for logging, _ in libraries:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for (logging, verbosity), bar in zip(libraries, bars, strict=True):
            logging.set_verbosity(verbosity)
            if bar:
                logging.enable_progress_bar()


# Folders


def _load_folder(
    folder: Path, component_files: Mapping[str, Path | str]
) -> tuple[Any, list[str], Mapping[str, object]]:
    """Load a pipeline, list the tensors that it does not use, and return its facts of the scheduler."""
    refuse_other_folders(folder)
    index = read_index(folder)
    modules: Modules = {}
    unused: list[str] = []
    marked: Mapping[str, object] = {}
    components = neural_components(folder, index)
    if unknown := sorted(component_files.keys() - components.keys()):
        fix = f"its components with weights are {', '.join(components)}"
        raise LoadError(f"the pipeline has no component {unknown[0]!r}", where=str(folder), fix=fix)
    for name, component in components.items():
        if name in component_files:
            modules[name], more, facts = component_from_file(name, component, folder, Path(component_files[name]))
            marked = {**marked, **facts}
        else:
            modules[name], more = module_of_folder(name, component, folder)
        unused += more
    return _assemble(folder, folder, index, modules), unused, marked


# Single files


def _load_file(
    path: Path, component_files: Mapping[str, Path | str], *, online: bool
) -> tuple[Any, list[str], Mapping[str, object]]:
    """Load a pipeline, list the tensors that it does not use, and return its facts of the scheduler."""
    header = read_header(path)
    refuse_partial_models(header)
    if component_files:
        fix = "save the pipeline as a diffusers folder, and give that"
        raise LoadError("components are replaced in a diffusers folder only", where=str(path), fix=fix)
    stored = read_tensors(path)
    marked = marked_options(stored, header.metadata, str(path))
    decoded = dequantized(stored, str(path), metadata=header.metadata)
    tensors = {name: in_float32(tensor) for name, tensor in decoded.items() if name not in MARKERS}
    with tempfile.TemporaryDirectory(prefix="diffc-") as temporary:
        folder = Path(temporary)
        write_config(config_of_file(header, tensors, online=online), folder)
        index = read_index(folder, named=str(path))
        components = neural_components(folder, index, named=str(path))
        modules = {name: component_of_file(name, components[name], tensors, folder, path) for name in components}
        pipeline = _assemble(folder, path, index, modules)
        loaded = sum(tensor.numel() for module in modules.values() for tensor in module.state_dict().values())
        sizes = [tensor.numel() for tensor in tensors.values()]
        unused = [] if loaded == sum(sizes) and all(sizes) else unused_tensors(tensors, components, folder)
        refuse_leftovers(unused, stored, str(path))
    return pipeline, unused, marked


# Adapters


def _add_ip_adapter(pipeline: Any, path: Path) -> list[str]:
    """Load an adapter into the denoiser, and list the tensors that the image encoder does not use."""
    if not hasattr(pipeline, "load_ip_adapter"):
        fix = "leave --ip-adapter out, or give another checkpoint"
        raise LoadError(f"{type(pipeline).__name__} takes no IP-Adapter", where=str(path), fix=fix)
    header = read_header(path)
    kind = kind_by_tensors(header.shapes)
    if kind is not None and "IP-Adapter" not in kind.name:
        raise LoadError(f"{path.name} is {kind.name}, not an IP-Adapter", where=str(path), fix=kind.fix)
    tensors, unused = _adapter_tensors(header), list[str]()
    if bad := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise LoadError(f"{listed(bad)} holds NaN or infinity", where=str(path), fix="get the file again")
    if pipeline.image_encoder is None:
        if not (path.parent / ENCODER).is_dir():
            fix = f"put the {ENCODER} folder that belongs to the adapter beside its file"
            raise LoadError(f"the IP-Adapter needs an {ENCODER}", where=str(path.parent / ENCODER), fix=fix)
        annotation = inspect.signature(type(pipeline).__init__).parameters[ENCODER].annotation
        encoder, unused = module_of_folder(ENCODER, _module_class(annotation), path.parent)
        pipeline.register_modules(**{ENCODER: encoder})
    parts = {
        part: {k.removeprefix(f"{part}."): t for k, t in tensors.items() if k.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }
    unused += [key for key in tensors if not key.startswith(tuple(f"{part}." for part in parts))]
    try:
        pipeline.load_ip_adapter(parts, subfolder="", weight_name="", image_encoder_folder=None)
    except (*LIBRARY_ERRORS, LookupError, AttributeError) as error:
        what = f"the IP-Adapter does not fit {type(pipeline).__name__}: {first_line(error)}"
        raise LoadError(what, where=str(path), fix="give the adapter of this model") from error
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    return unused


def _adapter_tensors(header: Header) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter in float32, after those that another tool quantized are multiplied out."""
    stored, where = read_tensors(header.path), str(header.path)
    tensors = {key: read(t) for key, t in dequantized(stored, where, metadata=header.metadata).items()}
    if integers := [key for key, tensor in tensors.items() if not tensor.is_floating_point()]:
        what = f"{listed(integers)} holds integers, not values of weights"
        raise LoadError(what, where=where, fix="get the adapter in 16 or 32 bits")
    refuse_leftovers([key for key in tensors if not ADAPTER_WEIGHTS.search(key)], stored, where)
    return {key: tensor.float() for key, tensor in tensors.items()}


def _module_class(annotation: Any) -> type[Any]:
    return next(
        kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, nn.Module)
    )


# Folders and single files


def _is_json(path: Path) -> bool:
    try:
        loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _assemble(folder: Path, source: Path, index: Mapping[str, Any], modules: Modules) -> Any:
    """Assemble a pipeline of loaded modules and of components without weights, which diffusers loads."""
    parameters = inspect.signature(pipeline_class(index, str(source)).__init__).parameters
    null = {name for name, value in index.items() if value == [None, None]}
    absent: dict[str, None] = {name: None for name in sorted(null.union(UNUSED)) if name in parameters}
    refuse_pieces((folder / name for name in components_of(index) if name not in modules), str(source))
    try:
        with _without_weights(folder, index, modules) as rest:
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                str(rest), local_files_only=True, dtype=torch.float32, **absent, **modules
            )
    except Exception as error:  # of both libraries, and of tokenizers, which raises no class of its own
        fix = "restore the folder as diffusers saved it"
        what = f"the pipeline cannot be put together: {first_line(error)}"
        damaged = (path for path in sorted(source.glob("*/*.json")) if not _is_json(path))
        raise LoadError(what, where=str(next(damaged, source)), fix=fix) from error
    for name, component in pipeline.components.items():
        if isinstance(component, transformers.PreTrainedTokenizerBase):
            check_tokenizer(name, component, folder, str(source))
    for module in modules.values():
        module.eval().requires_grad_(False)
    return pipeline


@contextmanager
def _without_weights(folder: Path, index: Mapping[str, Any], modules: Modules) -> Iterator[Path]:
    """Yield a folder of the components that are not loaded yet: diffusers would not find some classes of the others."""
    with tempfile.TemporaryDirectory(prefix="diffc-") as temporary:
        rest = {name: value for name, value in index.items() if name not in modules}
        (Path(temporary) / INDEX).write_text(dumps(rest), encoding="utf-8")
        for name in components_of(rest):
            (Path(temporary) / name).symlink_to((folder / name).absolute())
        yield Path(temporary)


def _for_task(pipeline: Any, task: str, path: Path) -> Any:
    factory = TASKS[task]
    if factory is None:
        return pipeline
    try:
        return getattr(diffusers, factory).from_pipe(pipeline)
    except LIBRARY_ERRORS as error:
        what = f"diffusers has no {task} pipeline for {type(pipeline).__name__}"
        raise LoadError(what, where=str(path), fix="choose another task") from error


def _scheduler_of(pipeline: Any, path: Path) -> Any:
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        raise LoadError(
            f"{type(pipeline).__name__} has no scheduler to replace", where=str(path), fix="leave out --sampler"
        )
    return scheduler
