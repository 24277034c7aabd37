"""Call a bundle like a function: prompts in, pictures out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffc.runtime.bundle.manifest import parse_json
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.errors import Cancelled, RequestError
from diffc.runtime.images import channels_last, pictures_from_arrays
from diffc.runtime.interpreter import Interpreter, linear
from diffc.runtime.preview import preview
from diffc.runtime.program.program import Op, Program, is_picture
from diffc.runtime.request import Request, Seed, Texts, make_request


@dataclass(frozen=True)
class Progress:
    """Report a finished step: number ``step`` of ``steps``, counted from 1 over all batches of the request.

    ``images`` are the numbers of the pictures in this batch, ``latents`` their latents, float32[len(images), …].
    """

    step: int
    steps: int
    images: range
    latents: NDArray[Any]
    seed: Seed
    _preview: Callable[[], NDArray[Any]] = field(repr=False, compare=False)

    def preview(self) -> list[Any]:
        """Decode the latents of this step as if it were the last. Raises `RequestError` where a program cannot."""
        return _pictures(channels_last(self._preview())[: len(self.images)])


Callback = Callable[[Progress], object]


class Sampler:
    """Draw pictures with the programs of one bundle. Threads may share it.

    >>> sampler = load("shapes.diffc")                                    # doctest: +SKIP
    >>> [picture] = sampler("a red circle", seed=0)                       # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self._bundle = open_bundle(Path(path))
        self._interpreter = Interpreter(self._bundle, threads=threads)

    @property
    def path(self) -> Path:
        """Say where the bundle is."""
        return self._bundle.path

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Give all of the manifest."""
        return self._bundle.manifest.raw

    @property
    def target(self) -> str:
        """Name the target that the bundle was built for."""
        return self._bundle.manifest.target

    @property
    def engines(self) -> tuple[str, ...]:
        """Name the engines that have computed so far: the target's, and those that stood in for it."""
        return tuple(sorted(self._interpreter.engines))

    @property
    def programs(self) -> Mapping[str, str]:
        """Map the names of the programs to their texts; the first is the default."""
        return self._bundle.manifest.programs

    @property
    def scalars(self) -> Mapping[str, float | None]:
        """Map the numbers that a request may give to the defaults of the first program that has them."""
        known: dict[str, float | None] = {}
        for program in self._bundle.programs.values():
            known = {**program.scalars, **known}
        return known

    @property
    def bytes(self) -> int:
        """Sum the sizes of the files."""
        return sum(file.bytes for file in self._bundle.manifest.files.values())

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """Give what the build measured of a quantized bundle's fidelity; None where nothing was quantized."""
        name = "quantization.json"
        if name not in self._bundle.manifest.files:
            return None
        found: Mapping[str, Any] = parse_json((self._bundle.root / name).read_bytes(), name)
        return found

    @property
    def makes(self) -> Literal["pictures", "films", "numbers"]:
        """Say what the default program draws; numbers are what is not for the eye, such as sound."""
        program = next(iter(self._bundle.programs.values()))
        shape = program.types[program.outputs[0]].shape
        return "numbers" if not is_picture(shape) else "pictures" if len(shape) == 4 else "films"

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
        size: tuple[int, int] | None = None,
        program: str | None = None,
        callback: Callback | None = None,
        output: Literal["pil", "np"] = "pil",
        **inputs: Any,
    ) -> list[Any] | NDArray[np.float32]:
        """Draw ``num_images`` pictures for each prompt, in the order of the prompts.

        One ``seed`` gives what diffusers gives for all the pictures with one generator: each draw of noise is made for
        all of them at once, before the first batch runs. A list of seeds gives each picture its own generator. None
        stands for a random seed, which ``picture.info["seed"]`` and the callback's `Progress` tell. ``latents``, one or
        one for each picture, stand for the first draw, which is then not made. The negative prompt is none, one, or
        one for each prompt; a program without guidance does not read it. ``inputs`` are a program's other texts and
        scalars, its pictures (``image``, ``mask_image``): PIL images, which are scaled to its size, or
        float[…, H, W, C]; and its other tensors, such as ``image_embeds``: numbers for one picture, or an array with a
        row for each.

        The program is the one named, or else the first whose guards hold, of those that draw ``size``, a width and a
        height in pixels; ``guidance_scale`` is by default that of the
        first. ``callback`` is called after each step; if it returns True the request ends in `Cancelled`.

        Returns PIL images (for a film a list of them), or with ``output="np"`` float32[N, H, W, C] in [0, 1] or
        float32[N, F, H, W, C]; what is no picture, sound for example, comes as the numbers that the pipeline returns,
        with ``output="np"`` only. Raises `RequestError`.
        """
        if output not in ("pil", "np"):
            raise RequestError(f"output is {output!r}", fix='use "pil" or "np"')
        given = {"prompt": prompt, "negative_prompt": negative_prompt, "guidance_scale": guidance_scale, **inputs}
        asked: dict[str, Any] = {"program": program, "size": size, "seed": seed, "latents": latents}
        request = make_request(self._bundle.programs, inputs=given, num_images=num_images, **asked)
        if output == "pil":
            self._needs_pictures(request.program)
        arrays = self._draw(request, callback)
        if output == "np":
            return arrays
        pictures = _pictures(arrays)
        for at, picture in enumerate(pictures):
            for frame in picture if isinstance(picture, list) else [picture]:
                frame.info["seed"] = request.seed[at] if isinstance(request.seed, Sequence) else request.seed
        return pictures

    def _needs_pictures(self, program: Program) -> None:
        drawn = program.types[program.outputs[0]]
        if not is_picture(drawn.shape):
            raise RequestError(f"{program.name} makes {drawn}, no pictures", fix='ask for numbers: output="np"')

    def _draw(self, request: Request, callback: Callback | None) -> NDArray[np.float32]:
        program, batches = request.program, []
        for start in range(0, request.count, request.program.batch):
            on_step = self._on_step(request, start, callback) if callback else None
            found = self._interpreter.run(program, request.chunk(start), request.scalars, on_step=on_step)
            batches.append(channels_last(found[program.outputs[0]]))
        return np.concatenate(batches)[: request.count]

    def _on_step(self, request: Request, start: int, callback: Callback) -> Callable[[Op, dict[str, Any]], None]:
        program, scalars = request.program, request.scalars
        each = sum(op.operator == "step" for op in program.ops)
        images = range(start, min(start + program.batch, request.count))
        steps, done = each * -(-request.count // program.batch), each * (start // program.batch)

        def on_step(op: Op, values: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            latents = linear(op, values, scalars)[: len(images)]
            decode = preview(self._interpreter, program, op, values, scalars)
            if callback(Progress(done, steps, images, latents, request.seed, decode)) is True:
                raise Cancelled(f"cancelled after step {done} of {steps}")

        return on_step


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Sampler:
    """Open a bundle, a folder or a tar file of one, and check every byte of it.

    ``threads`` bounds the threads of one operation; None takes all cores. Raises `BundleError`.
    """
    return Sampler(path, threads=threads)


def _pictures(arrays: NDArray[Any]) -> list[Any]:
    return pictures_from_arrays(arrays) if arrays.ndim == 4 else [pictures_from_arrays(film) for film in arrays]
