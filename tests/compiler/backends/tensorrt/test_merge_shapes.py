"""Graphs that differ in the shapes of inputs alone become one; ONNX Runtime computes with it what it does with each."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from diffc.compiler.backends.onnx.export import Onnx
from diffc.compiler.backends.tensorrt.merge_shapes import Different, merge, merge_files
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.ir.program import Graph, Value
from tests.tolerances import GRAPH
from tests.zoo import ZOO

Feeds = dict[str, np.ndarray]


class Denoiser(nn.Module):
    """Give a denoiser of the zoo its one tensor back."""

    def __init__(self, pipeline: str, component: str) -> None:
        super().__init__()
        self.net = ZOO[pipeline]().pipeline.components[component]

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        labelled = not condition.is_floating_point()
        given = {"class_labels": condition} if labelled else {"encoder_hidden_states": condition}
        found: torch.Tensor = self.net(sample, timestep, **given, return_dict=False)[0]
        return found


class BesideWeights(Onnx):
    """Write graphs where ONNX Runtime finds their weights without being told."""

    file = "{}.onnx"


def unet() -> nn.Module:
    return Denoiser("StableDiffusionPipeline", "unet")


def transformer() -> nn.Module:
    return Denoiser("DiTPipeline", "transformer")


def feeds_of(batch: int, height: int = 8, width: int = 8, *, labelled: bool = False) -> Feeds:
    random = np.random.default_rng(batch)
    sample = random.standard_normal((batch, 4, height, width)).astype(np.float32)
    text = random.standard_normal((batch, 16, 32)).astype(np.float32)
    condition = np.arange(batch) if labelled else text
    return {"sample": sample, "timestep": np.full(batch, 601.0, np.float32), "condition": condition}


def lowered(module: nn.Module, feeds: list[Feeds], folder: Path) -> list[str]:
    """Write a module's graph for each batch; give the files."""
    graphs = []
    for at, each in enumerate(feeds):
        given = tuple(map(torch.from_numpy, each.values()))
        ports = tuple(Value(name, type_of(x)) for name, x in zip(each, given, strict=True))
        body = export("net", module.eval().requires_grad_(False), given)
        graphs.append(Graph(f"net_{at}", ports, (Value("y"),), body, "net"))
    folder.mkdir(exist_ok=True)
    return list(BesideWeights().lower(graphs, "fp32", folder, lambda _: None).values())


def computed(folder: Path, file: str, feeds: Feeds) -> np.ndarray:
    (found,) = onnxruntime.InferenceSession(folder / file).run(None, feeds)
    return np.asarray(found)


@pytest.fixture(scope="module", params=[unet, transformer])
def lowered_twice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Feeds]]:
    """Write the graphs net_0 and net_1 of a denoiser; tests must leave them as they are."""
    folder = tmp_path_factory.mktemp("graphs")
    feeds = [feeds_of(batch, labelled=request.param is transformer) for batch in (2, 1)]
    lowered(request.param(), feeds, folder)
    return folder, feeds


def test_one_graph_computes_what_each_did(lowered_twice: tuple[Path, list[Feeds]], tmp_path: Path) -> None:
    given, feeds = lowered_twice
    folder, files = tmp_path / "merged", ["net_0.onnx", "net_1.onnx"]
    shutil.copytree(given, folder)
    assert merge_files(folder, files) == dict.fromkeys(files, "net_0.onnx")
    assert [path.name for path in folder.glob("*.onnx")] == ["net_0.onnx"]
    for file, each in zip(files, feeds, strict=True):
        wanted = computed(given, file, each)
        np.testing.assert_allclose(computed(folder, "net_0.onnx", each), wanted, rtol=0, atol=GRAPH)
    graph = onnx.load(folder / "net_0.onnx", load_external_data=False).graph
    sizes = [[dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim] for port in graph.input]
    assert sizes[:2] == [["sample_0", 4, 8, 8], ["sample_0"]]


def test_a_reshape_that_changes_nothing_in_a_batch_of_one_may_be_left_out(tmp_path: Path) -> None:
    both = """<ir_version: 10, opset_import: ["" : 23]>
        g (float[1, 8] p, float[2, 1] s) => (float[2, 2] y) <int64[2] parts = {4, 4}, int64[2] to = {2, 2}> {
            a, b = Split <axis = 1> (p, parts)
            c = Reshape (a, to)
            d = Reshape (b, to)
            e = Add (c, d)
            y = Add (e, s)
        }"""
    one = """<ir_version: 10, opset_import: ["" : 23]>
        g (float[1, 4] p, float[1, 1] s) => (float[1, 2] y) <int64[2] parts = {2, 2}, int64[2] to = {1, 2}> {
            a, b = Split <axis = 1> (p, parts)
            d = Reshape (b, to)
            e = Add (a, d)
            y = Add (e, s)
        }"""
    models = [onnx.parser.parse_model(text) for text in (both, one)]
    for order in (models, models[::-1]):
        (tmp_path / "merged.onnx").write_bytes(merge(order, tmp_path).SerializeToString())
        for batch, wanted in ((2, [[4, 6], [8, 10]]), (1, [[2, 4]])):
            given = {"p": np.arange(4 * batch, dtype=np.float32)[None], "s": np.zeros((batch, 1), np.float32)}
            np.testing.assert_array_equal(computed(tmp_path, "merged.onnx", given), wanted)


def test_graphs_of_other_weights_stay_apart(lowered_twice: tuple[Path, list[Feeds]]) -> None:
    folder, _ = lowered_twice
    first, second = (onnx.load(folder / f"net_{at}.onnx", load_external_data=False) for at in range(2))
    assert merge([first, second], folder)
    outside = max(
        (tensor for tensor in second.graph.initializer if tensor.external_data), key=lambda t: np.prod(t.dims)
    )
    place = {entry.key: entry for entry in outside.external_data}
    place["offset"].value = str(int(place["offset"].value) + 4)
    with pytest.raises(Different):
        merge([first, second], folder)


def test_pictures_of_several_sizes_with_and_without_guidance(tmp_path: Path) -> None:
    feeds = [feeds_of(2, 8, 12), feeds_of(1, 8, 12), feeds_of(2, 12, 8)]
    files = lowered(unet(), feeds, tmp_path)
    wanted = [computed(tmp_path, file, each) for file, each in zip(files, feeds, strict=True)]
    assert merge_files(tmp_path, files) == dict.fromkeys(files, "net_0.onnx")
    for each, by in zip(feeds, wanted, strict=True):
        np.testing.assert_allclose(computed(tmp_path, "net_0.onnx", each), by, rtol=0, atol=GRAPH)
    port = onnx.load(tmp_path / "net_0.onnx", load_external_data=False).graph.input[0]
    sizes = [dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim]
    assert sizes == ["sample_0", 4, "sample_2", "sample_3"]


def test_positions_that_were_folded_into_constants_stay_apart(tmp_path: Path) -> None:
    files = lowered(transformer(), [feeds_of(2, labelled=True), feeds_of(2, 16, 16, labelled=True)], tmp_path)
    assert merge_files(tmp_path, files) == {file: file for file in files}


def shifted(steps: int, rows: list[list[float]]) -> onnx.ModelProto:
    """Add to each row of a batch what was computed for it at build, for so many steps at once."""
    batch, values = len(rows), [number for _ in range(steps) for row in rows for number in row]
    return onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[{batch}, 3] x) => (float[{steps}, {batch}, 3] y)
        <float[{steps}, {batch}, 3] known = {{{", ".join(map(str, values))}}}> {{ y = Add (known, x) }}""")


def test_a_batch_that_was_computed_at_build_is_one_row_but_for_rounding(tmp_path: Path) -> None:
    exact, rounded = [1.0, -2.0, 0.0], [1.000001, -2.000001, 0.0000001]
    merged = merge([shifted(2, [rounded, rounded]), shifted(2, [exact])], tmp_path)
    (tmp_path / "merged.onnx").write_bytes(merged.SerializeToString())
    for batch in (1, 2):
        x = np.arange(3 * batch, dtype=np.float32).reshape(batch, 3)
        wanted = np.broadcast_to(x + np.array(exact, np.float32), (2, batch, 3))
        np.testing.assert_array_equal(computed(tmp_path, "merged.onnx", {"x": x}), wanted)


@pytest.mark.parametrize("other", [[1.001, -2.0, 0.0], [1.0, -2.0, 0.001], [1.0, -np.inf, 0.0]])
def test_rows_of_a_batch_that_differ_stay_apart(other: list[float], tmp_path: Path) -> None:
    exact = [1.0, -2.0, 0.0]
    given = shifted(2, [exact, exact])
    (tensor,) = given.graph.initializer
    values = numpy_helper.to_array(tensor).copy()
    values[1, 1] = other
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(Different):
        merge([given, shifted(2, [exact])], tmp_path)


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Add (known, t)",  # t has one row, and would get one
        "a = Add (known, x)  y = Concat <axis = 1> (known, a)",  # the first may take one row, the second may not
    ],
)
def test_one_row_is_kept_only_where_all_are_met(nodes: str, tmp_path: Path) -> None:
    def graph(batch: int) -> onnx.ModelProto:
        values = ", ".join(["1, 2, 3"] * batch)
        return onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 23]>
            g (float[{batch}, 3] x, float[1, 3] t) => (float[a, b] y)
            <float[{batch}, 3] known = {{{values}}}> {{ {nodes} }}""")

    with pytest.raises(Different):
        merge([graph(2), graph(1)], tmp_path)


def reshaped(height: int, width: int, *to: int) -> onnx.ModelProto:
    """Reshape a sample of channels, a height and a width."""
    return onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[4, {height}, {width}] x) => (float[{", ".join("abc"[: len(to)])}] y)
        <int64[{len(to)}] to = {{{", ".join(map(str, to))}}}> {{ y = Reshape (x, to) }}""")


@pytest.mark.parametrize(
    "several",
    [
        [(8, 8, 4, 64), (6, 4, 4, 24)],  # a product
        [(8, 8, 16, 16), (6, 4, 16, 6)],  # a quarter of one
        [(8, 8, 2, 2, 64), (6, 4, 2, 2, 24)],  # beside what stays
        [(8, 6, 32, 6), (8, 4, 32, 4)],  # one of two
        [(8, 8, 4, 64), (6, 4, 4, 24), (2, 2, 4, 4)],
        [(8, 4, 4, 32), (4, 8, 4, 32)],  # the same in both
    ],
)
def test_sizes_are_products_of_those_of_inputs(several: list[tuple[int, ...]], tmp_path: Path) -> None:
    merged = ReferenceEvaluator(merge([reshaped(*each) for each in several], tmp_path))  # which computes every size
    for height, width, *to in several:
        given = {"x": np.arange(4 * height * width, dtype=np.float32).reshape(4, height, width)}
        np.testing.assert_array_equal(merged.run(None, given)[0], given["x"].reshape(to))  # type: ignore[arg-type]


def test_sizes_that_are_no_products_stay_apart(tmp_path: Path) -> None:
    with pytest.raises(Different):
        merge([reshaped(9, 8, 12, 24), reshaped(7, 8, 7, 32)], tmp_path)


def test_graphs_whose_inputs_have_other_names_stay_apart(tmp_path: Path) -> None:
    first, second = reshaped(8, 8, 4, 64), reshaped(6, 4, 4, 24)
    second.graph.input[0].name = second.graph.node[0].input[0] = "z"
    with pytest.raises(Different):
        merge([first, second], tmp_path)


def test_graphs_that_are_the_same_are_one(tmp_path: Path) -> None:
    for at in range(2):
        (tmp_path / f"{at}.onnx").write_bytes(reshaped(8, 8, 4, 64).SerializeToString())
    assert merge_files(tmp_path, ["0.onnx", "1.onnx"]) == {"0.onnx": "0.onnx", "1.onnx": "0.onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["0.onnx"]
