"""Say on the command line what an entry of the zoo asks for."""

from __future__ import annotations

import inspect
import json
from typing import get_args

import PIL.Image

from tests.zoo import Entry

SAID = ("prompt", "negative_prompt", "output_type", "num_inference_steps", "width", "height", "guidance_scale")


def build_options(entry: Entry) -> list[str]:
    """Give the options of ``diffc build`` that fix all of a request but its texts, pictures and guidance."""
    request = entry.request
    options = ["--steps", str(request["num_inference_steps"])]
    options += ["--size", f"{request.get('width', 16)}x{request.get('height', 16)}"]
    if "guidance_scale" in request:
        options += ["--guidance", str(request["guidance_scale"])]
    parameters = inspect.signature(type(entry.pipeline).__call__).parameters
    for name, value in request.items():
        is_picture = PIL.Image.Image in get_args(parameters[name].annotation)
        if name == "strength":
            options += ["--strength", str(value)]
        elif name not in SAID and not is_picture:
            options += ["--set", f"{name}={json.dumps(value)}"]
    return options
