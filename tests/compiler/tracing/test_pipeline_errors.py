"""Errors of a trace name the line of the pipeline, not one of PyTorch's or of the compiler's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.pipeline_errors import pipeline_errors, size_fix


def test_a_failure_inside_torch_names_the_line_that_called_it() -> None:
    with pytest.raises(CaptureError, match="the pipeline refuses") as caught, pipeline_errors():
        torch.nn.Linear(3, 4)(torch.zeros(2, 5))  # the line
    assert str(caught.value.where).startswith(__file__)
    assert str(caught.value.where).endswith("# the line")


def test_a_refusal_keeps_its_words_and_its_fix() -> None:
    with pytest.raises(CaptureError) as caught, pipeline_errors():
        raise CaptureError("no such thing", fix="do without")
    assert (caught.value.what, caught.value.fix) == ("no such thing", "do without")


def test_an_interruption_is_no_failure_of_the_pipeline() -> None:
    with pytest.raises(KeyboardInterrupt), pipeline_errors():
        raise KeyboardInterrupt


def test_a_failure_inside_pythons_library_names_the_line_that_called_it() -> None:
    @contextmanager
    def fails() -> Iterator[None]:
        yield
        raise ValueError("at the end")

    with pytest.raises(CaptureError) as caught, pipeline_errors(), fails():  # the line
        json.loads("1")
    assert str(caught.value.where).startswith(__file__)

    with pytest.raises(CaptureError) as caught, pipeline_errors():
        json.loads("no")  # this line
    assert str(caught.value.where).endswith("# this line")


def test_a_size_that_the_autoencoder_does_not_scale_by_has_the_multiple_as_its_fix() -> None:
    pipeline = SimpleNamespace(vae_scale_factor=8)
    assert size_fix(pipeline, (63, 64)) == "use a --size whose width and height are multiples of 8, or of more"
    assert size_fix(pipeline, (64, 64)) is size_fix(pipeline, None) is size_fix(object(), (63, 64)) is None
