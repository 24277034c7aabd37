"""Find which images and other tensors a pipeline's call takes from the request.

An image that a pipeline requires is in its signature, and has the size of the sampled images. The shape of an embedding
is in no signature, and is an option of the build: ``--input image_embeds=1280`` requests 1280 values for each image,
``--input image=image,image`` a list of two images, which the request calls ``image_1`` and ``image_2``, ``--input
hidden=16x24,`` a list of one array, ``--input last_image=image:224x224`` an image of another size, and ``--input
ip_adapter_image=prepared`` one that the pipeline's feature extractor prepares for an image encoder. ``picture`` is the
former word for ``image``. Fields of conditions that are dataclasses have paths, ``--input conditions.frames=image``,
with numbers where there are several conditions: ``conditions.0.frames``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin

import PIL.Image
import torch
from diffusers import ModelMixin

from diffc.compiler.errors import BuildError
from diffc.compiler.tracing.request_inputs import Image, Tensor
from diffc.runtime.images import images_from_arrays
from diffc.runtime.program.facts import Facts

PREPARED = "prepared"
KIND = re.compile(
    r"prepared|(?:image|picture)(?::(?P<width>[1-9]\d*)x(?P<height>[1-9]\d*))?|(?P<shape>[1-9]\d*(?:x[1-9]\d*)*)"
)

TENSORS = {torch.Tensor, torch.FloatTensor}
ARRAYS = {PIL.Image.Image, *TENSORS}
"""What annotations name that an image or an array of the request may be."""

Parameters = Mapping[str, inspect.Parameter]
Size = tuple[int, int]
"""A width and a height in pixels."""


def requested_arrays(
    pipeline: Any, kinds: Mapping[str, str], *, batch: int, size: Size | None
) -> dict[str, Image | Tensor]:
    """Describe the arrays that ``kinds`` names, and the images that the pipeline requires.

    Raises `BuildError` for an argument that the pipeline lacks, and for required tensors of unknown shape.
    """
    parameters = call_parameters(pipeline)
    for name in kinds:
        parameter = parameter_at(parameters, name)
        if parameter is None or not ARRAYS & _admitted(parameter):
            what = f"{type(pipeline).__name__} takes neither images nor tensors as {name}"
            takes = [n for n, p in parameters.items() if ARRAYS & _admitted(p)]
            fix = f"use one of {', '.join(takes)}" if takes else "leave --input out"
            raise BuildError(what, where="--input", fix=fix)
    _refuse_unknown_shapes(pipeline, parameters, kinds)
    arrays: dict[str, Image | Tensor] = {}
    for name, kind in _all_kinds(parameters, kinds).items():
        each = _listed(kind)
        for item, one in zip(_names(name, each), each, strict=True):
            arrays[item] = _array(pipeline, item, one, batch, size)
    return arrays


def as_arguments(
    pipeline: Any, kinds: Mapping[str, str], request: Mapping[str, Any], as_image: Callable[[Any], Any] | None = None
) -> dict[str, Any]:
    """Return the arguments of the pipeline's call that the inputs of a request stand for: some of them in lists.

    ``as_image`` converts tensors [batch, channels, height, width] in [0, 1] to images as users hand them over, which
    the pipeline prepares itself; without it images stay tensors.
    """
    parameters = call_parameters(pipeline)
    arguments = dict(request)
    for name, kind in _all_kinds(parameters, kinds).items():
        each = _listed(kind)
        items = [arguments.pop(item) for item in _names(name, each)]
        items = [_argument(pipeline, item, one, as_image) for item, one in zip(items, each, strict=True)]
        parameter = parameter_at(parameters, name)
        alone = "," not in kind and parameter is not None and ARRAYS & set(_types(parameter))
        arguments[name] = items[0] if alone else items
    return arguments


def call_parameters(pipeline: Any) -> Parameters:
    """Return the parameters of a pipeline's call, with annotations that are texts evaluated where that is possible."""
    call = type(pipeline).__call__
    try:
        return inspect.signature(call, eval_str=True).parameters
    except NameError:
        return inspect.signature(call).parameters


def parameter_at(parameters: Parameters, path: str) -> inspect.Parameter | None:
    """Return a parameter, or that of a field of its dataclass, by its path; None where there is none."""
    name, *places = path.split(".")
    parameter = parameters.get(name)
    if parameter is None or not places:
        return parameter
    condition = _condition(parameter)
    return inspect.signature(condition).parameters.get(places[-1]) if condition else None


def with_conditions(pipeline: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call, with those that are fields of conditions together in these.

    Lists are copied, since a pipeline may write into them. Raises `BuildError` for a condition that lacks a field.
    """
    parameters = call_parameters(pipeline)
    copies = {name: [*value] if isinstance(value, list) else value for name, value in arguments.items()}
    whole_arguments = {name: value for name, value in copies.items() if "." not in name}
    fields: dict[str, dict[str, dict[str, Any]]] = {}
    for path, value in copies.items():
        if "." in path:
            place, field = path.rsplit(".", 1)
            fields.setdefault(place.partition(".")[0], {}).setdefault(place, {})[field] = value
    for name, places in fields.items():
        condition: Any = _condition(parameters[name])
        for place, values in places.items():
            try:
                inspect.signature(condition).bind(**values)
            except TypeError as error:
                raise BuildError(f"{place}: {error}", where="--input", fix="name every field that it needs") from error
        conditions = [condition(**places[place]) for place in sorted(places, key=lambda place: (len(place), place))]
        takes_lists = any(get_origin(part) is list for part in _types(parameters[name]))
        whole_arguments[name] = conditions if takes_lists else conditions[0]
    return whole_arguments


def _condition(parameter: inspect.Parameter) -> type | None:
    """Return the dataclass that an annotation names; None where it names none."""
    return next((leaf for leaf in _leaves(parameter.annotation) if is_dataclass(leaf) and isinstance(leaf, type)), None)


def pil_images(tensor: torch.Tensor) -> PIL.Image.Image | list[PIL.Image.Image]:
    """Return the image of a batch [batch, channels, height, width] in [0, 1], or a list of several."""
    images = images_from_arrays(tensor.movedim(1, -1).numpy())
    return images[0] if len(images) == 1 else images


def _argument(pipeline: Any, tensor: Any, kind: str, as_image: Callable[[Any], Any] | None) -> Any:
    if as_image is not None and not _shape(kind):
        return as_image(tensor)
    return _prepared(pipeline, tensor) if kind == PREPARED else tensor


def _listed(kind: str) -> list[str]:
    """Return the kinds in a list; one of a single item ends with a comma."""
    return kind.removesuffix(",").split(",")


def _shape(kind: str) -> str | None:
    """Return the shape that a kind of input states; None for an image."""
    match = KIND.fullmatch(kind)
    return match and match["shape"]


def _all_kinds(parameters: Parameters, kinds: Mapping[str, str]) -> dict[str, str]:
    """Return the kinds of inputs that are requested, and of the images that the pipeline requires."""
    needed = {name: "image" for name, parameter in parameters.items() if _is_needed_image(name, parameter)}
    return needed | dict(kinds)


def _names(name: str, kinds: Sequence[str]) -> list[str]:
    name = name.replace(".", "_")
    return [name] if len(kinds) == 1 else [f"{name}_{number}" for number in range(1, len(kinds) + 1)]


def _array(pipeline: Any, name: str, kind: str, batch: int, size: Size | None) -> Image | Tensor:
    match = KIND.fullmatch(kind)
    if match is None:
        fix = "use a shape for one image, as 1280 or 16x24x24, image, image:WxH or prepared; commas make a list"
        raise BuildError(f"{kind!r} is no input", where=f"--input {name}", fix=fix)
    if match["shape"]:
        return Tensor((batch, *map(int, match["shape"].split("x"))))
    if kind == PREPARED:
        crop = _feature_extractor(pipeline, name).crop_size
        size = crop["width"], crop["height"]
    width, height = (int(match["width"]), int(match["height"])) if match["width"] else size or _own_size(pipeline)
    return Image((batch, 1 if "mask" in name else 3, height, width))


def _feature_extractor(pipeline: Any, name: str) -> Any:
    extractor = getattr(pipeline, "feature_extractor", None)
    if not getattr(extractor, "do_normalize", False) or not getattr(extractor, "do_center_crop", False):
        what = f"{type(pipeline).__name__} has no feature extractor that crops and normalizes"
        raise BuildError(what, where=f"--input {name}", fix="use image, or the shape of an array")
    return extractor


def _prepared(pipeline: Any, image: torch.Tensor) -> torch.Tensor:
    """Shift and scale each colour of an image of the cropped size, as the feature extractor does."""
    extractor = _feature_extractor(pipeline, "")
    mean, deviation = (torch.tensor(x).reshape(3, 1, 1) for x in (extractor.image_mean, extractor.image_std))
    return (image - mean) / deviation


def _types(parameter: inspect.Parameter) -> tuple[Any, ...]:
    return get_args(parameter.annotation) or (parameter.annotation,)


def _admitted(parameter: inspect.Parameter) -> set[Any]:
    """Return the types that the annotation names, alone or in lists of any depth."""
    return set(_leaves(parameter.annotation))


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types of an annotation; those of a function's arguments are none."""
    if get_origin(annotation) is Callable:
        return
    for part in get_args(annotation) or (annotation,):
        yield from (part,) if part is annotation else _leaves(part)


def _is_needed_image(name: str, parameter: inspect.Parameter) -> bool:
    types = _types(parameter)
    needed = PIL.Image.Image in types and type(None) not in types
    return needed and (name == "image" or name.endswith("_image"))


def _refuse_unknown_shapes(pipeline: Any, parameters: Parameters, kinds: Mapping[str, str]) -> None:
    required = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]
    tensors = [n for n in required if TENSORS & (types := _admitted(parameters[n])) and PIL.Image.Image not in types]
    unknown = [name for name in tensors if name not in kinds]
    if unknown:
        what = f"{type(pipeline).__name__} needs {' and '.join(unknown)}, of a shape that its signature lacks"
        fix = f"set the shape for one image: --input {unknown[0]}=1280, for example"
        raise BuildError(what, where="the arguments of its call", fix=fix)


def latent_models(pipeline: Any) -> list[ModelMixin]:
    """List the components that compute on latents alone: models of diffusers that decode nothing."""
    components = pipeline.components.values()
    return [model for model in components if isinstance(model, ModelMixin) and not hasattr(model, "decode")]


def _own_size(pipeline: Any) -> Size:
    """Return the size in pixels that the denoiser was trained for."""
    factor = getattr(pipeline, "vae_scale_factor", None)
    sizes = [size for c in latent_models(pipeline) if isinstance(size := getattr(c.config, "sample_size", None), int)]
    if not factor or not sizes:
        raise BuildError("the size of the image is not known", where=type(pipeline).__name__, fix="set it with --size")
    return sizes[0] * factor, sizes[0] * factor


def program_name(facts: Facts, *, says_size: bool = False) -> str:
    """Name the program of some facts; the name of a program in a bundle of several sizes holds its size.

    >>> program_name(Facts("text-to-image", 20, (768, 512)), says_size=True)
    'text_to_image_20_768x512'
    """
    size = "{}x{}".format(*facts.size) if says_size and facts.size is not None else ""
    return "_".join(filter(None, [facts.task.replace("-", "_"), str(facts.steps), size, facts.variant]))


def takes_tuples(parameter: inspect.Parameter) -> bool:
    """Return whether an argument is a tuple, by its annotation or its default, and never a list."""
    types = [get_origin(type_) or type_ for type_ in (*get_args(parameter.annotation), parameter.annotation)]
    return (tuple in types or isinstance(parameter.default, tuple)) and list not in types
