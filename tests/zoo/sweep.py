"""Build an entry of the zoo as a user does, and compare what its bundle samples with diffusers.

``python -m tests.zoo.sweep NAME… [--json] [--folder FOLDER]`` saves each pipeline, compiles it with ``diffc build``,
and samples three prompts (none, five words, one longer than any maximum) at two seeds each. Images are PIL images, for
diffusers and for the bundle. A name may be a pattern: ``'*PAG*'``.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import click
import diffusers
import numpy as np
import PIL.Image
import torch
import transformers
from safetensors.torch import save_file

from diffc.compiler.tracing.pipeline_inputs import parameter_at
from diffc.runtime import load
from diffc.runtime.errors import DiffcError
from tests.command_line import diffc
from tests.tolerances import PICTURE, PROMPTS_APART
from tests.zoo import ZOO, Entry
from tests.zoo.entry import matching

PROMPTS = ("", "a red, a blue circle", "a red circle blue square " * 8)
SEEDS = (0, 1)
TARGET = "ort-fp32"
PROGRESS = re.compile(r" *\d+(\.\d+)? s  ")

OPTIONS_OF_THEIR_OWN = (
    *("prompt", "negative_prompt", "output_type", "num_inference_steps", "width", "height", "guidance_scale"),
    "strength",
)


@dataclass(frozen=True)
class Outcome:
    """Hold what became of an entry: ``right``, ``wrong``, ``refused`` by name, or ``failed`` with a traceback.

    ``difference`` is the largest of all requests, relative to the largest value of an output where that is above 1.
    """

    name: str
    status: str
    difference: float | None = None
    message: str = ""
    graphs: int = 0
    staged: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        figure = "" if self.difference is None else f" {self.difference:.1e}"
        return f"{self.status:8}{figure} {self.name} ({self.seconds:.0f} s) {self.message}".rstrip()


def sweep(name: str, folder: Path) -> Outcome:
    """Save, build, run and compare one entry."""
    started = time.perf_counter()
    try:
        outcome = _sweep(name, folder)
    except DiffcError as error:
        outcome = Outcome(name, "refused", message=f"at run: {error}")
    except Exception:
        outcome = Outcome(name, "failed", message=traceback.format_exc())
    return replace(outcome, seconds=time.perf_counter() - started)


def _sweep(name: str, folder: Path) -> Outcome:
    entry = ZOO[name]()
    request = request_of_user(entry)
    expected = {(prompt, seed): sampled(entry, prompt, seed, request) for prompt in prompts(entry) for seed in SEEDS}
    apart = least_difference([array for (_, seed), array in expected.items() if seed == SEEDS[0]])
    if not apart >= PROMPTS_APART:
        return Outcome(name, "failed", message=f"images of two prompts differ by {apart:.0e} only: amplify its weights")
    adapter = save_adapter(entry, folder) if entry.ip_adapter else ()
    entry.pipeline.save_pretrained(folder / "model")
    bundle = folder / "model.diffc"
    built = diffc("build", folder / "model", "-o", bundle, "--target", TARGET, *build_options(entry), *adapter)
    if built.exit_code:
        is_refusal = isinstance(built.exception, SystemExit) and "Traceback" not in built.output
        message = refusal(built.stderr) if is_refusal else "".join(traceback.format_exception(built.exception))
        return Outcome(name, "refused" if is_refusal else "failed", message=message)
    sampler = load(bundle)
    inputs = dict[str, Any]()
    for key, value in by_path(request).items():
        inputs |= bundle_inputs(key.replace(".", "_"), value)
    if "negative_prompt" in request:
        inputs["negative_prompt"] = request["negative_prompt"]
    differences = [
        difference(sampler(prompt, seed=seed, output="np", **inputs), array)
        for (prompt, seed), array in expected.items()
    ]
    stages, largest = sampler.manifest["stages"], max(differences, key=lambda x: (np.isnan(x), x))
    staged = 1 - stages["latent"] / max(1, sum(stages.values()))
    outcome = Outcome(name, "right", largest, graphs=len(sampler.manifest["graphs"]), staged=staged)
    return outcome if largest <= PICTURE else replace(outcome, status="wrong")


def refusal(stderr: str) -> str:
    """Return an error's message without the lines of progress."""
    return " ".join(line.strip() for line in stderr.splitlines() if not PROGRESS.match(line))


def prompts(entry: Entry) -> tuple[str, ...]:
    """Return the prompts that an entry is sampled with; one without a text has an empty one."""
    return PROMPTS if "prompt" in entry.request else PROMPTS[:1]


def sampled(entry: Entry, prompt: str, seed: int, request: Mapping[str, Any]) -> np.ndarray:
    """Sample with diffusers, and return the first result as an array, channels last.

    Noise that the pipeline draws without the generator is that of the process, which is seeded as a bundle seeds it.
    """
    changes: dict[str, Any] = {"prompt": prompt} if "prompt" in request else {}
    if "output_type" in request and request["output_type"] == "pt":
        changes["output_type"] = "np"
    torch.manual_seed(~seed)
    result = entry.pipeline(**request | changes, return_dict=False, generator=torch.Generator("cpu").manual_seed(seed))
    return np.asarray(result[0] if isinstance(result, tuple) else result)


def least_difference(arrays: Sequence[np.ndarray]) -> float:
    """Return the difference of the two arrays that differ least, NaN where one has it, infinity for fewer than two."""
    differences = [difference(*pair) for pair in itertools.combinations(arrays, 2)]
    return float(np.min(differences)) if differences else float("inf")


def difference(array: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value above 1; infinity for another shape."""
    if array.shape != expected.shape:
        return float("inf")
    return float(np.abs(array - expected).max() / max(1.0, np.abs(expected).max()))


# Requests


def request_of_user(entry: Entry) -> dict[str, Any]:
    """Return an entry's request with images as PIL images, but where the pipeline takes tensors only."""
    parameters = inspect.signature(type(entry.pipeline).__call__).parameters
    return {
        key: value if parameters[key].annotation is torch.Tensor else as_user_brings(value)
        for key, value in entry.request.items()
    }


def as_user_brings(value: Any) -> Any:
    """Turn an image that is a tensor into a PIL image; return other values as they are."""
    if isinstance(value, list):
        return [as_user_brings(item) for item in value]
    if not (isinstance(value, torch.Tensor) and value.ndim == 4 and value.shape[:2] in ((1, 1), (1, 3))):
        return value
    array = (value[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return PIL.Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def by_path(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request with the fields of conditions by their paths."""
    flat = dict[str, Any]()
    for key, value in request.items():
        if isinstance(value, list) and value and all(map(is_dataclass, value)):
            fields = {f"{at}.{name}": field for at, item in enumerate(value) for name, field in vars(item).items()}
            flat |= {f"{key}.{path}": field for path, field in fields.items() if field is not None}
        else:
            flat[key] = value
    return flat


def bundle_inputs(name: str, value: Any) -> dict[str, Any]:
    """Return the images and arrays of a request under the names that a bundle has for them."""
    if isinstance(value, PIL.Image.Image):
        return {name: value}
    if isinstance(value, torch.Tensor | np.ndarray):
        return {name: np.asarray(value)}
    if is_images(value) or is_arrays(value):
        items = [np.asarray(item) if isinstance(item, torch.Tensor) else item for item in value]
        return {name: items[0]} if len(items) == 1 else {f"{name}_{n}": item for n, item in enumerate(items, 1)}
    return {}


def is_images(value: Any) -> bool:
    """Return whether a value is a list of images."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, PIL.Image.Image) for item in value)


def is_arrays(value: Any) -> bool:
    """Return whether a value is a list of tensors other than images."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, torch.Tensor) for item in value)


def build_options(entry: Entry) -> list[str]:
    """Return the options of ``diffc build`` that fix all of a request but its texts and images."""
    request = by_path(entry.request)
    values = by_path(request_of_user(entry)).values()
    images = [item for value in values for item in (value if is_images(value) else [value])]
    size = next((item.size for item in images if isinstance(item, PIL.Image.Image)), (16, 16))
    size = request.get("width", size[0]), request.get("height", size[1])
    options = ["--size", "{}x{}".format(*size)]
    if "num_inference_steps" in request:
        options += ["--steps", str(request["num_inference_steps"])]
    if "guidance_scale" in request:
        options += ["--guidance", str(request["guidance_scale"])]
    if "strength" in request:
        options += ["--strength", str(request["strength"])]
    parameters = inspect.signature(type(entry.pipeline).__call__).parameters
    for name, value in request.items():
        if name not in OPTIONS_OF_THEIR_OWN:
            options += _option(name, parameter_at(parameters, name), value, size)
    return options


def _option(name: str, parameter: Any, value: Any, size: tuple[int, int]) -> list[str]:
    """Return the option that fixes an argument, or declares it as an input; none for an image that is required."""
    types = get_args(parameter.annotation)
    if isinstance(value, PIL.Image.Image):
        is_required = PIL.Image.Image in types and type(None) not in types and name.endswith("image")
        return [] if is_required and value.size == size else ["--input", f"{name}={_kind(value, size)}"]
    if is_images(value):
        return ["--input", f"{name}={','.join(_kind(item, size) for item in value)}"]
    if PIL.Image.Image in types and isinstance(value, list):
        return ["--input", f"{name}={','.join(['image'] * len(value))}"]
    if PIL.Image.Image in types and isinstance(value, torch.Tensor):
        return []
    if isinstance(value, torch.Tensor | np.ndarray):
        return ["--input", f"{name}={_shape(value)}"]
    if is_arrays(value):
        return ["--input", f"{name}={''.join(f'{_shape(item)},' for item in value)}"]
    return ["--set", f"{name}={json.dumps(value)}"]


def _shape(array: torch.Tensor | np.ndarray) -> str:
    """Return the shape of an array for one image."""
    return "x".join(map(str, array.shape[1:]))


def _kind(image: PIL.Image.Image, size: tuple[int, int]) -> str:
    return "image" if image.size == size else "image:{}x{}".format(*image.size)


def save_adapter(entry: Entry, folder: Path) -> tuple[str, Path]:
    """Take the adapter out of a pipeline and save it as it is published, with its image encoder beside it."""
    assert entry.ip_adapter
    entry.pipeline.image_encoder.save_pretrained(folder / "image_encoder")
    save_file(entry.ip_adapter, folder / "adapter.safetensors")
    entry.pipeline.unload_ip_adapter()
    return "--ip-adapter", folder / "adapter.safetensors"


def quiet() -> None:
    """Keep libraries from warning and from drawing progress bars."""
    warnings.simplefilter("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the saved pipelines and the bundles there.")
def main(names: tuple[str, ...], as_json: bool, folder: Path | None) -> None:
    """Sweep the entries of these names or patterns."""
    quiet()
    for name in matching(names):
        with tempfile.TemporaryDirectory() as temporary:
            outcome = sweep(name, folder / name if folder else Path(temporary))
        click.echo(json.dumps(asdict(outcome)) if as_json else str(outcome))


if __name__ == "__main__":
    main()
