"""Read the files of a request, and save the images, videos, audio or array that it returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffc.runtime.errors import DiffcError, RequestError
from diffc.runtime.output_file import check_writable


def check_output(path: Path, kind: str = "images") -> None:
    """Raise `RequestError` where outputs of a kind cannot be written to a path: its suffix or its folder forbids it."""
    from diffc.runtime.images import check_path

    check_writable(path)
    if not is_array(path):
        if kind == "arrays":
            raise RequestError(f"{path} cannot hold audio or another array", where=str(path), fix="use .npy")
        check_path(path, is_video=kind == "videos")


def is_array(path: Path) -> bool:
    """Return whether a file holds an array, by its suffix."""
    return path.suffix.lower() == ".npy"


def save_outputs(outputs: Any, path: Path) -> None:
    """Save an array, one image or video, or several side by side."""
    from diffc.runtime.images import grid, save, save_array

    if not isinstance(outputs, list):
        save_array(outputs, path)
    elif not isinstance(outputs[0], list):
        save(outputs[0] if len(outputs) == 1 else grid(outputs), path)
    else:
        save(outputs[0] if len(outputs) == 1 else [grid(frames) for frames in zip(*outputs, strict=True)], path)


def read_scalars(scalars: Mapping[str, float | None], guidance: float | None, settings: Any) -> dict[str, Any]:
    """Return the scalars of a request. Raises `DiffcError` for other inputs, which have options of their own."""
    if unknown := [name for name, _ in settings if name not in scalars]:
        fix = f"set one of {', '.join(scalars)}" if scalars else "leave --set out"
        raise DiffcError(f"{unknown[0]} is no scalar of the request", where="--set", fix=fix)
    return {"guidance_scale": guidance} | dict(settings)


def read_inputs(files: Iterable[tuple[str, Path | str | None]]) -> dict[str, Any]:
    """Read the images and arrays of a request by their names; those without a file are left out."""
    from diffc.runtime.images import open_image

    paths = {name: Path(file) for name, file in files if file is not None}
    return {name: read_array(path) if is_array(path) else open_image(path) for name, path in paths.items()}


def read_array(path: Path) -> Any:
    """Read a .npy file. Raises `DiffcError` for another."""
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DiffcError(f"{path} cannot be read: {error}", fix="name a .npy file") from error
