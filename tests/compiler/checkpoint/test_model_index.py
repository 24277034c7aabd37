"""The index of a diffusers folder: which classes it names, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from diffc.compiler.checkpoint.model_index import components_of, neural_components, pipeline_class, read_index
from diffc.compiler.errors import LoadError

INDEX = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": "0.1",
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "safety_checker": ["transformers", "CLIPModel"],
    "feature_extractor": [None, None],
}


def folder_of(index: Any, folder: Path) -> Path:
    (folder / "model_index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text("{}")
    return folder


def test_reads_components_that_are_present_and_used(tmp_path: Path) -> None:
    index = read_index(folder_of(INDEX, tmp_path))
    assert pipeline_class(index, "x") is diffusers.DDPMPipeline
    assert components_of(index) == {"unet": ("diffusers", "UNet2DModel"), "scheduler": ("diffusers", "DDPMScheduler")}
    assert neural_components(tmp_path, index) == {"unet": diffusers.UNet2DModel}


def test_an_option_that_is_two_numbers_is_no_component(tmp_path: Path) -> None:
    index = read_index(folder_of(INDEX | {"text_encoder_select_layers": [1, 2], "sizes": [None, 4]}, tmp_path))
    assert components_of(index) == components_of(INDEX)


def test_leaves_components_to_a_pipeline_that_has_a_default_for_them() -> None:
    index = {"_class_name": "LongCatAudioDiTPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    assert components_of(index) == {}
    assert components_of(index | {"_class_name": "FluxPipeline"}) == {"scheduler": tuple(index["scheduler"])}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "model_index.json cannot be read"),
        ([], "names no pipeline class"),
        ({}, "names no pipeline class"),
        (INDEX | {"_class_name": ["my_module", "MyPipeline"]}, "is code of its own"),
        (INDEX | {"_class_name": "NoSuchPipeline"}, "has no pipeline 'NoSuchPipeline'"),
        (INDEX | {"_class_name": "UNet2DModel"}, "has no pipeline 'UNet2DModel'"),
        (INDEX | {"unet": ["os", "system"]}, "unet of 'os' is code of its own"),
        (INDEX | {"../unet": ["diffusers", "UNet2DModel"]}, "names a component '../unet'"),
        (INDEX | {"extra": ["diffusers", "UNet2DModel"]}, "component extra is missing"),
        (
            {key: value for key, value in INDEX.items() if key != "unet"},
            "component unet is missing: DDPMPipeline needs",
        ),
    ],
)
def test_refuses_an_index_that_is_damaged_or_foreign(index: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=message):
        read_index(folder_of(index, tmp_path))


def test_a_folder_without_an_index_may_be_one_component(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is an empty folder"):
        read_index(tmp_path)
    (tmp_path / "README.md").write_text("")
    with pytest.raises(LoadError, match="has no model_index.json\n.*\n  fix: give a folder that diffusers saved"):
        read_index(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match="fix: give its parent"):
        read_index(tmp_path)


def test_names_a_class_that_a_library_does_not_have(tmp_path: Path) -> None:
    index = read_index(folder_of(INDEX, tmp_path)) | {"unet": ["diffusers", "UNet9DModel"]}
    with pytest.raises(LoadError, match="diffusers has no class 'UNet9DModel', which unet requires"):
        neural_components(tmp_path, index)
