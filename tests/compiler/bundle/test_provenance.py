"""What a bundle says of its build is read back for the pipeline that it came from."""

from __future__ import annotations

import pytest

from diffc.compiler.bundle.provenance import arguments_of, size_of
from diffc.compiler.errors import BuildError
from diffc.compiler.tracing.pipeline_inputs import program_name

RECIPE = {"sizes": [], "strength": None, "options": {"num_frames": 16}, "task": "text-to-image"}


@pytest.mark.parametrize("ending", ["", "_unguided", "_no_negative"])
@pytest.mark.parametrize("task", ["text-to-image", "inpaint"])
def test_a_program_s_name_says_its_steps(task: str, ending: str) -> None:
    assert arguments_of(program_name(task, 20) + ending, RECIPE) == {"num_inference_steps": 20, "num_frames": 16}


@pytest.mark.parametrize("ending", ["", "_unguided"])
def test_where_there_are_several_sizes_it_says_its_own(ending: str) -> None:
    recipe = RECIPE | {"sizes": [[64, 32], [96, 64]]}
    for size in ((64, 32), (96, 64)):
        assert size_of(program_name("text-to-image", 20, size) + ending, recipe) == size
    assert size_of(f"text_to_image_20{ending}", RECIPE | {"sizes": [[64, 32]]}) == (64, 32)
    assert size_of(f"text_to_image_20{ending}", RECIPE) is None


def test_a_program_of_one_s_own_says_nothing() -> None:
    with pytest.raises(BuildError, match="main was not built from a pipeline"):
        arguments_of("main", RECIPE)


def test_arguments_are_what_was_fixed() -> None:
    assert arguments_of("inpaint_4_unguided", RECIPE | {"sizes": [[64, 32]], "strength": 0.5}) == {
        "num_inference_steps": 4,
        "width": 64,
        "height": 32,
        "strength": 0.5,
        "num_frames": 16,
    }


def test_a_bundle_that_does_not_know_its_sizes_is_built_again() -> None:
    with pytest.raises(BuildError, match="an older diffc built this bundle") as refused:
        size_of("text_to_image_20", {"size": None})
    assert refused.value.fix == "build it again"
