"""Register pipelines of the zoo: what an entry is, and the requests that most share."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn

LENGTH = 16
"""Tokens of a text."""

WIDTH = 32
"""Channels of a text's embedding."""

SIZE = {"height": 16, "width": 16}
WORDS = ("a", "red", "blue", "circle", "square")


@dataclass(frozen=True)
class Entry:
    """Hold a pipeline and the keyword arguments for one call of it; its texts and its guidance are among them."""

    pipeline: Any
    request: dict[str, Any]
    ip_adapter: dict[str, torch.Tensor] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Name the arguments that are texts."""
        return tuple(key for key in ("prompt", "negative_prompt") if key in self.request)

    @property
    def guidance(self) -> str | None:
        """Name the argument that is the guidance scale."""
        return next((key for key in ("guidance_scale", "true_cfg_scale") if key in self.request), None)

    def draw(self, seed: int = 0, **changes: Any) -> torch.Tensor:
        """Run the pipeline eagerly and give its first result."""
        generator = torch.Generator("cpu").manual_seed(seed)
        result = self.pipeline(**self.request | {"return_dict": False, "generator": generator} | changes)
        return torch.as_tensor(result[0] if isinstance(result, tuple) else result)


ZOO: dict[str, Callable[[], Entry]] = {}
REFUSED: dict[str, str] = {}
WRONG: dict[str, str] = {}
ABSENT: dict[str, str] = {}
"""The entries that need a package which is not installed, and that package."""


def matching(patterns: Iterable[str]) -> list[str]:
    """Return the names of the entries that have one of these names, or match one of these patterns."""
    return [name for name in ZOO if any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)]


def entry(
    name: str, *, refused: str = "", wrong: str = "", needs: str = ""
) -> Callable[[Callable[[], Entry]], Callable[[], Entry]]:
    """Register a function that assembles a pipeline, with the seed set and no weights left at zero.

    ``refused`` is a part of the message with which ``diffc`` refuses it today; ``wrong`` says by how much, and why, its
    bundle differs from diffusers. ``needs`` is a package that diffusers needs for it, and the zoo for nothing else.
    """
    if refused:
        REFUSED[name] = refused
    if wrong:
        WRONG[name] = wrong
    is_absent = bool(needs) and find_spec(needs) is None
    if is_absent:
        ABSENT[name] = needs

    def register(assemble: Callable[[], Entry]) -> Callable[[], Entry]:
        def seeded() -> Entry:
            torch.manual_seed(0)
            made = assemble()
            made.pipeline.set_progress_bar_config(disable=True)
            for component in made.pipeline.components.values():
                if isinstance(component, nn.Module):
                    component.eval().requires_grad_(False)
                    wake(component)
            return made

        if not is_absent:
            ZOO[name] = seeded
        return seeded

    return register


def wake(module: nn.Module) -> None:
    """Fill weights that training would start at zero: they would hide what is before them."""
    for weight in module.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)


def stand_in_for_ftfy(pipeline: type) -> None:
    """Leave texts as they are where a pipeline has ftfy repair them, and ftfy is not installed."""
    vars(sys.modules[pipeline.__module__]).setdefault("ftfy", SimpleNamespace(fix_text=lambda text: text))


def texts(**request: Any) -> dict[str, Any]:
    """Ask for a text with guidance, at the small size, in three steps."""
    default = {"prompt": "a red circle", "negative_prompt": "blue", "guidance_scale": 4.0, "num_inference_steps": 3}
    return default | SIZE | {"output_type": "pt"} | request


def without(request: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Leave out what a pipeline does not take."""
    return {key: value for key, value in request.items() if key not in keys}


def rebuilt(
    pipeline: type, base: Entry, *dropped: str, parts: Mapping[str, Any] | None = None, **request: Any
) -> Entry:
    """Put the components of a pipeline together to another pipeline, some replaced; change the request as well."""
    taken = inspect.signature(pipeline).parameters
    components = {name: component for name, component in base.pipeline.components.items() if name in taken}
    return Entry(pipeline(**components | dict(parts or {})), without(base.request, *dropped) | request)


def picture(channels: int = 3, size: int = 16) -> torch.Tensor:
    """Draw a picture on [0, 1]."""
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(1))


def photo(size: int = 16, seed: int = 1) -> PIL.Image.Image:
    """Make an image as users bring it."""
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def photo_mask(size: int = 16) -> PIL.Image.Image:
    """Mark the right half of an image."""
    return PIL.Image.fromarray(np.repeat(np.uint8([[0] * (size // 2) + [255] * (size // 2)]), size, axis=0))


def mask() -> torch.Tensor:
    """Mark the right half of a picture."""
    return torch.cat([torch.zeros(1, 1, 16, 8), torch.ones(1, 1, 16, 8)], dim=3)
