"""The tasks exist in diffusers, and on the command line."""

from __future__ import annotations

import diffusers
import pytest

from diffc.compiler.checkpoint.tasks import TASKS
from tests.command_line import diffc


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_a_conversion_of_diffusers_and_a_choice_of_build(task: str) -> None:
    name = TASKS[task]
    assert name is None or callable(getattr(diffusers, name).from_pipe)
    assert task in diffc("build", "--help").output
