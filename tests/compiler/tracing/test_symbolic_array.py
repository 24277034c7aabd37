"""Compute with symbolic arrays as NumPy does, and refuse what is not recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.image_functions import recorded_images
from diffc.compiler.tracing.symbolic_array import SymbolicArray
from tests.tolerances import PICTURE_OF_NUMPY

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
MEAN = np.array([0.5, 0.25, 0.125])


def symbolic() -> SymbolicArray:
    return SymbolicArray(torch.from_numpy(PIXELS.astype(np.float32)), np.uint8)


def written(array: Any) -> Any:
    mask = array.astype(np.float32) / 255
    mask[mask < 0.5] = 0
    mask[mask >= 0.5] = 1
    return mask


def written_copy(copied: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Write into what a function returns of an array, and show both."""

    def function(array: Any) -> Any:
        array = array.astype(np.float32)
        copy = copied(array)
        copy[0] = 5
        return np.stack([array, torch.as_tensor(copy).numpy()])

    return function


CASES: dict[str, Callable[[Any], Any]] = {
    "scale": lambda array: array.astype(np.float32) / 255.0,
    "scale in float64": lambda array: array.astype(np.float64) * (1 / 255),
    "normalize": lambda array: (array / 255.0 - MEAN) / np.array([1.0, 2.0, 4.0], np.float32),
    "transpose": lambda array: array.transpose(2, 0, 1),
    "transpose by a tuple": lambda array: np.transpose(array, (1, 2, 0)).T,
    "stack": lambda array: np.stack([array, array[::-1]], axis=0),
    "list": lambda array: np.array([array, array]),
    "concatenate": lambda array: np.concatenate([array[None], array[None]], axis=0),
    "mix with constants": lambda array: np.concatenate([array, np.zeros_like(PIXELS)], axis=1),
    "index": lambda array: array[1:, ..., 0],
    "reverse": lambda array: array[:, :, ::-1],
    "patches": lambda array: np.broadcast_to(array[None], (2, 4, 5, 3)).reshape(4, -1),
    "move": lambda array: np.moveaxis(np.expand_dims(array, 0), -1, 1),
    "invert": lambda array: 255 - array,
    "threshold": lambda array: (array > 127).astype(np.float32),
    "write": written,
    "round": lambda array: (array.astype(np.float32) / 2).round(),
    "clip": lambda array: np.clip(array.astype(np.float32), 3, 90).astype(np.uint8),
    "clip to a fraction": lambda array: np.clip(array, 0, 127.5),
    "clip to whole numbers": lambda array: array.clip(3, 90),
    "repeat": lambda array: np.repeat(np.tile(array, (2, 1, 1)), 2, axis=0),
    "convert": lambda array: np.asarray(array, dtype=np.float32),
    "copy by astype": written_copy(lambda array: array.astype(np.float32)),
    "no copy by astype": written_copy(lambda array: array.astype(np.float32, copy=False)),
    "no copy by asarray": written_copy(lambda array: np.asarray(array, dtype=np.float32)),
    "copy by a tensor": written_copy(lambda array: torch.tensor(array)),
    "no copy by a tensor": written_copy(lambda array: torch.from_numpy(array)),
    "concatenate a tuple": lambda array: np.concatenate((array, array), axis=2),
    "keep an axis": lambda array: array.max(axis=1, keepdims=True),
    "least of all": lambda array: np.stack([array.min(), np.maximum.reduce(array, axis=None)]),
    "reduce the first axis": lambda array: np.minimum.reduce(array),
    "tensor": lambda array: torch.from_numpy(array.copy()).permute(2, 0, 1).float().numpy(),
}


@pytest.mark.parametrize("name", CASES)
def test_computes_as_numpy_does(name: str) -> None:
    expected = CASES[name](PIXELS)
    with recorded_images():
        computed = CASES[name](symbolic())
    assert computed.dtype == expected.dtype
    values = computed.values.numpy() if isinstance(computed, SymbolicArray) else computed
    assert values.shape == computed.shape == expected.shape
    assert np.abs(values.astype(float) - expected).max() <= PICTURE_OF_NUMPY * 255


def test_is_an_array_with_a_type_and_a_range() -> None:
    array = symbolic()
    assert isinstance(array, np.ndarray)
    assert (array.shape, array.ndim, array.dtype) == ((4, 5, 3), 3, np.uint8)
    assert array.bounds == (float(PIXELS.min()), float(PIXELS.max()))
    assert np.min(array).item() >= 0
    assert array.astype(np.float64).tensor().dtype == torch.float64


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "overflow": (lambda array: array * np.uint8(2), "may leave the range of uint8"),
    "unknown function": (lambda array: np.sort(array), "NumPy's sort of an image is not recorded"),
    "unknown operator": (lambda array: np.sin(array), "NumPy's sin of an image is not recorded"),
    "unknown method": (lambda array: array.swapaxes(0, 1).astype(np.float32), "is not recorded has moved"),
    "in place": (lambda array: np.divide(array, 2.0, out=array), "is not recorded"),
    "decision": (lambda array: bool((array > 3)[0, 0, 0]), "a condition depends on elements"),
    "list": (lambda array: array.tolist(), "elements of an image are read"),
    "part backwards": (lambda array: array[2:0:-1], "backwards in part"),
    "largest of more": (lambda array: array.max(initial=9), "argument 'initial'"),
    "largest of some": (lambda array: array.max(where=PIXELS > 3, initial=9), "with these arguments"),
    "unseen copy": (lambda array: np.frompyfunc(float, 1, 1)(np.ndarray.view(array, np.ndarray)), "is read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_recorded_is_refused(name: str) -> None:
    compute, message = REFUSED[name]
    with recorded_images(), pytest.raises(CaptureError, match=message):
        compute(symbolic())
