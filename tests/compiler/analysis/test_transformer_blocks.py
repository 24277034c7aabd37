"""The blocks of a transformer are found by its shape, and are those that diffusers calls blocks."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from diffc.compiler.analysis.features import Feature
from diffc.compiler.analysis.stages import denoisers
from diffc.compiler.analysis.transformer_blocks import Stream, Transformer, transformer
from diffc.compiler.calibration.observe import watch
from diffc.compiler.checkpoint.load import load
from diffc.compiler.driver.pass_manager import run
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.pipeline import Sampling, trace_pipeline
from diffc.passes import NORMAL_FORM
from diffc.passes.stage import stage
from tests.conftest import DIT
from tests.deep import EACH, Given, deep
from tests.tolerances import STAGED
from tests.zoo import ZOO
from tests.zoo.tracing import traced

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")


def found(name: str) -> Transformer:
    """Find the blocks of a pipeline's transformer."""
    program = deep(name).program
    return transformer(denoisers([program])[0], [program])


@pytest.mark.parametrize("name", EACH)
def test_blocks_are_those_of_diffusers(name: str) -> None:
    """What a stream is before and after each block is what the module is given and gives, or parts of it in a row."""
    called = list[tuple[Given, Given]]()
    deep(name).draw(watch=lambda call, _, given, gave: called.append((given, gave)) if call == 0 else None)
    program, blocks = deep(name).program, found(name).blocks
    graph = denoisers([program])[0]
    sample = next(sample for sample in deep(name).calibrated().samples if sample.graph == graph.name)
    names = {name for block in blocks for each in block.streams for name in (each.before, each.after) if name}
    values = dict[str, torch.Tensor]()
    watch(graph, [sample], dict.fromkeys(names, ()), lambda node, _, made, __: values.update({node.name: made}))
    assert len(blocks) == len(called)
    for at, (block, (given, gave)) in enumerate(zip(blocks, called, strict=True)):
        read = {feature.node for feature in found(name).features(range(at, at + 1))[0]}
        assert read
        for stream in block.streams:
            assert not stream.before or is_one_of(values[stream.before], given)
            assert stream.after not in read or is_one_of(values[stream.after], gave)


def is_one_of(value: torch.Tensor, streams: Mapping[str, torch.Tensor | None]) -> bool:
    """Say whether a value is one of the streams, or the text's and the picture's in a row."""
    wanted = [stream for stream in streams.values() if stream is not None]
    wanted += [torch.cat([*wanted], 1), torch.cat([*wanted[::-1]], 1)]
    return any(w.shape == value.shape and (w - value).abs().max() <= STAGED * w.abs().max() for w in wanted)


@pytest.mark.parametrize("name", EACH)
def test_blocks_are_most_of_a_transformer(name: str) -> None:
    assert 0.75 < found(name).share < 1
    assert all(len(block.products) == 1 for block in found(name).blocks), "attention to the text is no such product"


def test_the_trained_transformer_has_eight_blocks_of_two_streams() -> None:
    program = trained()
    blocks = transformer(denoisers([program])[0], [program]).blocks
    assert [len(block.streams) for block in blocks] == [2] * 7 + [1], "the last block leaves the text as it is"
    assert [bool(each.before) for each in blocks[0].streams] == [True, False], "the text's is known before the loop"
    for before, after in zip(blocks, blocks[1:], strict=False):
        follows = {each.follows for each in after.streams}
        assert follows <= {each.after for each in before.streams} and "" not in follows


def trained() -> Program:
    """Stage the trained transformer."""
    calls = ComponentCalls()
    programs = calls.graphs(trace_pipeline(load(DIT), Sampling(steps=2), calls))
    return stage([run(program, NORMAL_FORM) for program in programs])[0]


def test_a_span_adds_to_each_stream_from_its_first_block_to_its_last() -> None:
    model = found("CogVideoXPipeline")
    first, last = model.blocks[1].streams, model.blocks[2].streams
    (features,) = model.features(range(1, 3))
    assert {(f.node, f.base) for f in features} == {
        (after.after, before.before) for before, after in zip(first, last, strict=True)
    }


def test_what_nothing_reads_is_no_feature() -> None:
    """After the last block only the picture's tokens are read, and between two spans what the second begins with."""
    model = found("StableDiffusion3Pipeline")
    (picture,) = model.blocks[-1].streams
    assert model.features(range(2, 4)) == [(Feature(picture.after, model.blocks[2].streams[0].before),)]
    front, rear = model.features(range(1), range(2, 4))
    assert len(front) == 2 and len(rear) == 1


def test_where_two_streams_become_one_a_span_has_features_for_both() -> None:
    model = found("FluxPipeline")
    assert [len(block.streams) for block in model.blocks] == [2, 2, 1, 1]
    (features,) = model.features(range(1, 4))
    assert [bool(each.base) for each in features] == [True] * 3
    assert features[-1].node == model.blocks[3].streams[0].after


def test_a_unet_is_mostly_no_transformer() -> None:
    (program,) = stage([traced(ZOO["StableDiffusionPipeline"]())])
    assert transformer(denoisers([program])[0], [program]).share < 0.5


def test_a_stream_follows_one_of_its_shape_only() -> None:
    *_, (third,), (fourth,) = (block.streams for block in found("FluxPipeline").blocks)
    assert third.follows == ""
    assert fourth == Stream(fourth.before, fourth.after, third.after)
