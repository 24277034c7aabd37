"""Record what pipelines do to given images: their way from Pillow through NumPy to PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import PIL.Image
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.symbolic_array import FIX, SymbolicArray, array_of
from diffc.compiler.tracing.symbolic_pixels import Pixels, constant_pixels, image_of, pixels_of
from diffc.compiler.tracing.symbolic_tensor import Symbolic
from diffc.compiler.tracing.text_functions import replaced

Function = Callable[..., Any]


@contextmanager
def recorded_images() -> Iterator[None]:
    """Record, in this block, functions that convert given images to arrays, arrays to tensors, and arrays to images."""
    replacements: list[tuple[Any, str, Callable[[Any], Function]]] = [
        *((np, name, _to_array) for name in ("array", "asarray", "ascontiguousarray")),
        *((torch, name, _to_tensor) for name in ("from_numpy", "tensor", "as_tensor")),
        (PIL.Image, "fromarray", _to_image),
        (PIL.Image.Image, "paste", _pasting),
        (PIL.Image.Image, "tobytes", _known),
        (PIL.Image.Image, "__deepcopy__", lambda _: lambda image, _memo: image.copy()),
        (Symbolic, "numpy", lambda _: array_of),
    ]
    with ExitStack() as stack:
        for owner, name, recording in replacements:
            stack.enter_context(replaced(owner, name, recording(getattr(owner, name, None))))
        yield


def _array(item: Any) -> SymbolicArray | None:
    """Return the symbolic array of an array, an image, or a list of these; None for what is known now."""
    if isinstance(item, SymbolicArray):
        return item
    pixels = pixels_of(item)
    if pixels is not None:
        grey = pixels.values.shape[0] == 1
        return SymbolicArray(pixels.values[0] if grey else pixels.values.movedim(0, -1), np.uint8)
    if isinstance(item, list | tuple) and item and _array(item[0]) is not None:
        arrays = [entry if (array := _array(entry)) is None else array for entry in item]
        return np.stack(arrays)  # type: ignore[return-value]
    return None


def _to_array(real: Function) -> Function:
    def convert(item: Any, *args: Any, **kwargs: Any) -> Any:
        array = _array(item)
        if array is None:
            return real(item, *args, **kwargs)
        dtype = args[0] if args else kwargs.get("dtype")
        array = array.copy() if kwargs.get("copy", real.__name__ == "array") else array
        return array if dtype is None else array.astype(dtype, copy=False)

    return convert


def _to_tensor(real: Function) -> Function:
    def convert(item: Any, *args: Any, **kwargs: Any) -> Any:
        array = _array(item)
        if array is None:
            return real(item, *args, **kwargs)
        array = array.copy() if real.__name__ == "tensor" else array
        dtype = kwargs.get("dtype")
        return array.tensor() if dtype is None else array.tensor().to(dtype)

    return convert


def _to_image(real: Function) -> Function:
    def convert(item: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(item, SymbolicArray):
            return real(item, *args, **kwargs)
        if item.dtype != np.uint8:
            raise CaptureError(f"an array of {item.dtype} becomes an image", fix="convert it to uint8 first")
        values = item.values
        return image_of(Pixels(values.unsqueeze(0) if values.dim() == 2 else values.movedim(-1, 0)))

    return convert


def _pasting(real: Function) -> Function:
    def paste(self: Any, im: Any, box: Any = None, mask: Any = None) -> None:
        if pixels_of(self) is None and pixels_of(im) is not None:
            self.im = constant_pixels(self)
        elif pixels_of(self) is not None and isinstance(im, PIL.Image.Image) and pixels_of(im) is None:
            im = image_of(constant_pixels(im))
        real(self, im, box, mask)

    return paste


def _known(real: Function) -> Function:
    def read(self: Any, *args: Any, **kwargs: Any) -> Any:
        if pixels_of(self) is not None:
            raise CaptureError("the pixels of a given image are read as bytes", fix=FIX)
        return real(self, *args, **kwargs)

    return read
