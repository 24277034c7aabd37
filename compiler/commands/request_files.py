"""Read the files of a request, and save the images, videos, audio or array that it returns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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


def set_once(option: str, named: Mapping[str, Any], shorthands: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return the values that an option sets by their names, and those of options for one name each, but for None.

    Raises `DiffcError` for a name that both set: one of the values would be ignored.
    """
    values = dict(named)
    for name, (shorthand, value) in shorthands.items():
        if value is not None and name in values:
            fix = f"leave {shorthand} or {option} {name}=… out"
            raise DiffcError(f"{name} is set twice", where=f"{shorthand} and {option}", fix=fix)
        values |= {} if value is None else {name: value}
    return values


def check_names(option: str, kind: str, names: Iterable[str], takes: Collection[str]) -> None:
    """Raise `DiffcError` for a name that is no input of the kind that an option sets."""
    if unknown := [name for name in names if name not in takes]:
        fix = f"set one of {', '.join(takes)}" if takes else f"leave {option} out"
        raise DiffcError(f"{unknown[0]} is no {kind} of the request", where=option, fix=fix)


def read_inputs(files: Mapping[str, Path | str]) -> dict[str, Any]:
    """Read the images and arrays of a request by their names."""
    from diffc.runtime.images import open_image

    paths = {name: Path(file) for name, file in files.items()}
    return {name: read_array(path) if is_array(path) else open_image(path) for name, path in paths.items()}


def read_array(path: Path) -> Any:
    """Read a .npy file. Raises `DiffcError` for another."""
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DiffcError(f"{path} cannot be read: {error}", fix="name a .npy file") from error
