"""Equal tensors lie once in a component's file; one that would become infinite keeps its type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffc.compiler.backends.onnx.weight_store import ALIGNMENT, Place, WeightStore
from diffc.compiler.errors import BackendError
from diffc.compiler.graph.lazy_weights import Weight


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    """Return an empty store."""
    return WeightStore(tmp_path)


def contents(store: WeightStore, place: Place, dtype: type) -> list[float]:
    """Read a tensor back as NumPy does."""
    data = (store.folder / place.file).read_bytes()[place.offset : place.offset + place.length]
    values: list[float] = np.frombuffer(data, dtype).tolist()
    return values


def weight(*values: float) -> Weight:
    """Return a weight of its own memory."""
    return Weight(torch.tensor(values), torch.float32, "net.weight")


def test_tensors_lie_aligned_one_after_the_other(store: WeightStore) -> None:
    places = [store.put("net", weight(*values), torch.float32) for values in ((1.0, 2.0, 3.0), (4.0,))]
    assert [place.offset for place in places] == [0, ALIGNMENT]
    assert [contents(store, place, np.float32) for place in places] == [[1.0, 2.0, 3.0], [4.0]]


def test_equal_tensors_are_stored_once_in_each_component(store: WeightStore) -> None:
    first, again, apart = (store.put(name, weight(1.0, 2.0), torch.float32) for name in ("a", "a", "b"))
    assert first == again and apart.file != first.file
    assert (store.folder / first.file).stat().st_size == 8


def test_a_tensor_is_narrowed_unless_that_makes_it_infinite(store: WeightStore) -> None:
    small = store.put("net", weight(1.5, -2.0), torch.float16)
    large = store.put("net", weight(1.5, 1e6), torch.float16)
    assert (small.dtype, contents(store, small, np.float16)) == (torch.float16, [1.5, -2.0])
    assert (large.dtype, contents(store, large, np.float32)) == (torch.float32, [1.5, 1e6])


def test_one_that_is_infinite_in_its_own_type_is_refused_by_name(store: WeightStore) -> None:
    stored = torch.tensor([1e6])
    with pytest.raises(BackendError, match="net.weight has values that are infinite in float16"):
        store.put("net", Weight(stored, torch.float16, "net.weight"), torch.float16)
