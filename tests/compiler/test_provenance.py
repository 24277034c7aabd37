"""What a bundle says of its build is read back for the pipeline that it came from."""

from __future__ import annotations

import pytest

from diffc.compiler.errors import BuildError
from diffc.compiler.provenance import arguments_of, steps_of


@pytest.mark.parametrize("name", ["text_to_image_20", "inpaint_20_unguided", "text_to_image_20_no_negative"])
def test_a_program_s_name_says_its_steps(name: str) -> None:
    assert steps_of(name) == 20


def test_a_program_of_one_s_own_says_none() -> None:
    with pytest.raises(BuildError, match="main was not built from a pipeline"):
        steps_of("main")


def test_arguments_are_what_was_fixed() -> None:
    recipe = {"size": None, "strength": None, "options": {"num_frames": 16}, "task": "text-to-image"}
    assert arguments_of(recipe) == {"num_frames": 16}
    assert arguments_of(recipe | {"size": [64, 32], "strength": 0.5}) == {
        "width": 64,
        "height": 32,
        "strength": 0.5,
        "num_frames": 16,
    }
