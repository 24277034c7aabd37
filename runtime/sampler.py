"""Call a bundle like a function: prompts in, images out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffc.runtime.bundle.manifest import parse_json
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.errors import Cancelled, RequestError
from diffc.runtime.images import channels_last, check_finite, images_from_arrays
from diffc.runtime.interpreter import Interpreter, linear
from diffc.runtime.preview import preview
from diffc.runtime.program.facts import Facts
from diffc.runtime.program.program import Op, Program, is_image
from diffc.runtime.request import Request, Seed, Texts, make_request


@dataclass(frozen=True)
class Progress:
    """Report a finished step: number ``step`` of ``steps``, counted from 1 over all batches of the request.

    ``images`` are the indices of the images in this batch, ``latents`` their latents, float32[len(images), …].
    """

    step: int
    steps: int
    images: range
    latents: NDArray[Any]
    seed: Seed
    _preview: Callable[[], NDArray[Any]] = field(repr=False, compare=False)

    def preview(self) -> list[Any]:
        """Decode the latents of this step as if it were the last. Raises `RequestError` where a program cannot."""
        return _images(channels_last(self._preview())[: len(self.images)])


Callback = Callable[[Progress], object]


class Sampler:
    """Sample images with the programs of one bundle. Threads may share it; a copy or a pickle opens it again.

    >>> sampler = load("shapes.diffc")                                    # doctest: +SKIP
    >>> [image] = sampler("a red circle", seed=0)                         # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self._bundle = open_bundle(Path(path))
        self._interpreter = Interpreter(self._bundle, threads=threads)
        self._opened_as = partial(type(self), Path(path).absolute(), threads=threads)

    def __reduce__(self) -> tuple[Callable[[], Sampler], tuple[()]]:
        return self._opened_as, ()

    @property
    def path(self) -> Path:
        """Return the path of the bundle."""
        return self._bundle.path

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Return the manifest."""
        return self._bundle.manifest.raw

    @property
    def target(self) -> str:
        """Return the target that the bundle was built for."""
        return self._bundle.manifest.target

    @property
    def engines(self) -> tuple[str, ...]:
        """Return the names of the engines that have run so far: the target's, and those that replaced it."""
        return tuple(sorted(self._interpreter.engines))

    @property
    def programs(self) -> Mapping[str, str]:
        """Map the names of the programs to their texts; the first is the default."""
        return self._bundle.manifest.programs

    @property
    def facts(self) -> Mapping[str, Facts]:
        """Map the names of the programs that were traced from a pipeline to their facts."""
        return self._bundle.manifest.facts

    @property
    def scalars(self) -> Mapping[str, float | None]:
        """Map each scalar that a request may set to its default in the first program that has it."""
        defaults: dict[str, float | None] = {}
        for program in self._bundle.programs.values():
            defaults = {**program.scalars, **defaults}
        return defaults

    @property
    def arrays(self) -> tuple[str, ...]:
        """Return the names of the images and other arrays that a request may set."""
        programs = self._bundle.programs.values()
        return tuple(dict.fromkeys(item.name for program in programs for item in program.arrays))

    @property
    def bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.bytes for file in self._bundle.manifest.files.values())

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """Return the build's measurements of a quantized bundle's fidelity; None where nothing was quantized."""
        name = "quantization.json"
        if name not in self._bundle.manifest.files:
            return None
        measurements: Mapping[str, Any] = parse_json(self._bundle.read(name), name)
        return measurements

    @property
    def output_kind(self) -> Literal["images", "videos", "arrays"]:
        """Return the kind of the default program's output; arrays are all that is not visible, such as audio."""
        program = next(iter(self._bundle.programs.values()))
        shape = program.types()[program.outputs[0]].fixed
        return "arrays" if not is_image(shape) else "images" if len(shape) == 4 else "videos"

    @property
    def makes(self) -> str:
        """Return the kind of output of earlier versions: ``pictures``, ``films`` or ``numbers``."""
        return {"images": "pictures", "videos": "films", "arrays": "numbers"}[self.output_kind]

    @overload
    def __call__(self, prompt: Texts = ..., *, output: Literal["pil"] = ..., **options: Any) -> list[Any]: ...
    @overload
    def __call__(self, prompt: Texts = ..., *, output: Literal["np"], **options: Any) -> NDArray[np.float32]: ...

    def __call__(
        self,
        prompt: Texts = "",
        *,
        negative_prompt: Texts | None = None,
        guidance_scale: float | None = None,
        seed: Seed | None = None,
        latents: ArrayLike | None = None,
        num_images: int = 1,
        size: int | tuple[int, int] | None = None,
        program: str | None = None,
        callback: Callback | None = None,
        output: Literal["pil", "np"] = "pil",
        **inputs: Any,
    ) -> list[Any] | NDArray[np.float32]:
        """Sample ``num_images`` images for each prompt, in the order of the prompts.

        One ``seed`` stands for one generator, as in diffusers: each noise is generated for all images at once, before
        the first batch runs. A list of seeds stands for a generator per image. Without a seed a random one is used,
        which ``image.info["seed"]`` and the callback's `Progress` hold. ``latents``, one or one per image, replace the
        first noise, which is then not generated. There may be one negative prompt or one per prompt; a program without
        guidance does not read it. ``inputs`` are a program's other texts and scalars; its images (``image``,
        ``mask_image``), as PIL images, which are scaled to its size, or as float[…, H, W, C]; and its other tensors,
        such as ``image_embeds``, as an array for one image or with one row per image.

        ``program`` names the program. The default is the first one of ``size``, a width and a height in pixels or the
        edge of a square, whose guards hold; the default of a scalar is the first that one of these has for it.
        ``callback`` is called after each step; if it returns True, the request ends with `Cancelled`.

        Returns PIL images (a list of them for a video), or with ``output="np"`` float32[N, H, W, C] in [0, 1] or
        float32[N, F, H, W, C]. Other outputs, such as audio, are returned as the pipeline returns them, with
        ``output="np"`` only. Raises `RequestError`.
        """
        if output not in ("pil", "np"):
            raise RequestError(f"output is {output!r}", fix='use "pil" or "np"')
        inputs = {"prompt": prompt, "negative_prompt": negative_prompt, "guidance_scale": guidance_scale, **inputs}
        options: dict[str, Any] = {"program": program, "size": size, "seed": seed, "latents": latents}
        request = make_request(self._bundle.programs, inputs=inputs, num_images=num_images, **options)
        if output == "pil":
            _check_visible(request.program)
        arrays = self._sample(request, callback)
        if output == "np":
            return arrays
        images = _images(arrays)
        rows_of_one = len(images) // request.count
        for at, image in enumerate(images):
            for frame in image if isinstance(image, list) else [image]:
                seed = request.seed
                frame.info["seed"] = seed[at // rows_of_one] if isinstance(seed, Sequence) else seed
        return images

    def _sample(self, request: Request, callback: Callback | None) -> NDArray[np.float32]:
        program, batches = request.program, []
        for start in range(0, request.count, request.program.batch):
            on_step = self._on_step(request, start, callback) if callback else None
            outputs = self._interpreter.run(program, request.chunk(start), request.scalars, on_step=on_step)
            batches.append(channels_last(outputs[program.outputs[0]]))
        result = np.concatenate(batches)[: request.count * program.rows // program.batch]
        check_finite(result)
        return result

    def _on_step(self, request: Request, start: int, callback: Callback) -> Callable[[Op, dict[str, Any]], None]:
        program, scalars = request.program, request.scalars
        steps_of_batch = sum(op.operator == "step" for op in program.ops)
        images = range(start, min(start + program.batch, request.count))
        steps = steps_of_batch * math.ceil(request.count / program.batch)
        done = steps_of_batch * (start // program.batch)

        def on_step(op: Op, values: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            latents = linear(op, values, scalars)
            latents = latents[: len(latents) * len(images) // program.batch]
            decode = preview(self._interpreter, program, op, values, scalars)
            if callback(Progress(done, steps, images, latents, request.seed, decode)) is True:
                raise Cancelled(f"cancelled after step {done} of {steps}")

        return on_step


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Sampler:
    """Open a bundle, as a folder or as a tar file, and check the digest of every file.

    ``threads`` bounds the threads of one operation; None stands for all cores. Raises `BundleError`.
    """
    return Sampler(path, threads=threads)


def _check_visible(program: Program) -> None:
    """Raise `RequestError` where the output is neither images nor videos."""
    type_ = program.types()[program.outputs[0]]
    if not is_image(type_.fixed):
        raise RequestError(f"{program.name} returns {type_}, no images", fix='request an array: output="np"')


def _images(arrays: NDArray[Any]) -> list[Any]:
    return images_from_arrays(arrays) if arrays.ndim == 4 else [images_from_arrays(video) for video in arrays]
