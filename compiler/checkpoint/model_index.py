"""Read ``model_index.json``, which names the classes of a pipeline and its components; refuse foreign classes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from json import loads
from pathlib import Path
from typing import Any

import diffusers
import transformers
from torch import nn

from diffc.compiler.errors import LoadError, first_line
from diffc.runtime.bundle.open import MANIFEST

INDEX = "model_index.json"
# Check or mark images after sampling; not parts of the sampler.
UNUSED = ("safety_checker", "watermarker")


def read_index(folder: Path, named: str | None = None) -> dict[str, Any]:
    """Return the index of a folder, which errors call ``named``.

    Raises `LoadError` for a file that is not an index, an unknown or foreign class, and a missing component.
    """
    where = named or str(folder)
    if not (folder / INDEX).is_file():
        if (folder / MANIFEST).is_file():
            fix = "name the checkpoint that it was built from; diffc run samples with a bundle"
            raise LoadError(f"{Path(where).name} is a bundle, not a checkpoint", where=where, fix=fix)
        if named is None and not any(folder.iterdir()):
            raise LoadError(f"{Path(where).name} is an empty folder", where=where, fix=f"give a folder with {INDEX}")
        is_component = (folder / "config.json").exists()
        fix = "give its parent, which holds model_index.json" if is_component else "give a folder that diffusers saved"
        raise LoadError(f"{Path(where).name} has no {INDEX}", where=where, fix=fix)
    try:
        index = loads((folder / INDEX).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        fix = "restore the file as diffusers saved it"
        raise LoadError(f"{INDEX} cannot be read: {error}", where=where, fix=fix) from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise LoadError(f"{INDEX} names no pipeline class", where=where, fix="restore the file as diffusers saved it")
    pipeline_class(index, where)
    _check_components(folder, index, where)
    return index


def pipeline_class(index: Mapping[str, Any], where: str) -> Any:
    """Find the pipeline's class in diffusers."""
    named = index["_class_name"]
    if not isinstance(named, str):
        raise _own_code(f"the pipeline {named}", where)
    class_ = getattr(diffusers, named, None)
    if not isinstance(class_, type) or not issubclass(class_, diffusers.DiffusionPipeline):
        what = f"diffusers {diffusers.__version__} has no pipeline {named!r}"
        raise LoadError(what, where=f"{where}, {INDEX}", fix="install a version of diffusers that has it")
    return class_


def _check_components(folder: Path, index: Mapping[str, Any], where: str) -> None:
    class_ = pipeline_class(index, where)
    for name, (library, _) in components_of(index).items():
        if not re.fullmatch(r"\w+", name):
            raise LoadError(f"{INDEX} names a component {name!r}", where=where, fix="use letters, digits and _")
        if _library(library) is None and _annotated(index, name) is None:
            raise _own_code(f"{name} of {library!r}", where)
        if not (folder / name).is_dir():
            fix = "restore the folder that is missing, or give the whole checkpoint"
            raise LoadError(f"component {name} is missing", where=f"{where}, {name}/", fix=fix)
    required = {
        name
        for name, parameter in inspect.signature(class_.__init__).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        and name not in ("self", *UNUSED, *class_._optional_components)
    }
    if absent := sorted(required - set(index)):
        what = f"component {absent[0]} is missing: {class_.__name__} needs {', '.join(sorted(required))}"
        raise LoadError(what, where=f"{where}, {INDEX}", fix="restore the file as diffusers saved it")


def components_of(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return library and class of each component that is present, used, and not built by the pipeline itself."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    named = {name: (pair[0], pair[1]) for name, pair in pairs.items() if all(isinstance(part, str) for part in pair)}
    unused = {*UNUSED, *_own_components(index)}
    return {name: pair for name, pair in named.items() if name not in unused and not name.startswith("_")}


def _own_components(index: Mapping[str, Any]) -> list[str]:
    """List the components for which the pipeline has a default: diffusers neither saves nor loads them."""
    class_ = getattr(diffusers, str(index.get("_class_name")), None)
    parameters = {} if class_ is None else inspect.signature(class_).parameters
    optional = getattr(class_, "_optional_components", ())
    return [name for name, p in parameters.items() if p.default is not inspect.Parameter.empty and name not in optional]


def _library(name: str) -> Any:
    """Find diffusers, transformers or one of diffusers' pipeline modules; None for anything else."""
    if name in ("diffusers", "transformers"):
        return diffusers if name == "diffusers" else transformers
    module = getattr(diffusers.pipelines, name, None)
    return module if inspect.ismodule(module) and module.__name__.startswith("diffusers.pipelines.") else None


def _annotated(index: Mapping[str, Any], name: str) -> Any:
    """Find a component's class in the pipeline's signature: a library need not export each of its classes."""
    parameter = inspect.signature(getattr(diffusers, index["_class_name"]).__init__).parameters.get(name)
    annotation = parameter.annotation if parameter else None
    is_of_diffusers = getattr(annotation, "__module__", "").startswith("diffusers.")
    return annotation if is_of_diffusers and getattr(annotation, "__name__", "") == index[name][1] else None


def neural_components(folder: Path, index: Mapping[str, Any], named: str | None = None) -> dict[str, type[Any]]:
    """Find the classes of the components that hold weights; tokenizers and schedulers are left to diffusers."""
    classes: dict[str, type[Any]] = {}
    for name, (library, class_name) in components_of(index).items():
        try:
            component = getattr(_library(library), class_name, None) or _annotated(index, name)
        except ImportError as error:
            fix = f"install what it requires: {first_line(error)}"
            raise LoadError(f"{name} needs a missing package", where=class_name, fix=fix) from error
        has_weights = (folder / name / "config.json").exists()
        if isinstance(component, type) and issubclass(component, nn.Module):
            classes[name] = component
        elif component is None and has_weights:
            what = f"{library} has no class {class_name!r}, which {name} requires"
            fix = f"install a version of {library} that has it"
            raise LoadError(what, where=f"{named or folder}, {INDEX}", fix=fix)
    return classes


def _own_code(what: str, where: str) -> LoadError:
    fix = "diffc runs no code that a checkpoint brings: use classes of diffusers and transformers"
    return LoadError(f"{what} is code of its own", where=f"{where}, {INDEX}", fix=fix)
