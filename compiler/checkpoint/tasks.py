"""Name the tasks that a checkpoint can be compiled for."""

from __future__ import annotations

TASKS = {
    "text-to-image": None,
    "image-to-image": "AutoPipelineForImage2Image",
    "inpaint": "AutoPipelineForInpainting",
}
"""The class of diffusers that converts a pipeline to the task; None where the checkpoint names it."""
