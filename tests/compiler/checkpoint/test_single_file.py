"""Where the configuration of a single file comes from; `test_load` converts whole files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diffc.compiler.checkpoint.safetensors_header import Header
from diffc.compiler.checkpoint.single_file import config_of_file
from diffc.compiler.errors import LoadError

FILES = {"model_index.json": "{}", "unet/config.json": '{"sample_size": 8}'}


def config(path: Path, metadata: dict[str, str]) -> dict[str, bytes]:
    return config_of_file(Header(path, {}, metadata), {"x": torch.zeros(1)}, online=False)


def test_the_file_s_own_configuration_comes_before_that_of_the_folder_beside_it(tmp_path: Path) -> None:
    beside = tmp_path / "model.config"
    (beside / "unet").mkdir(parents=True)
    (beside / "unet" / "config.json").write_text('{"sample_size": 16}')
    (beside / "unet" / "weights.safetensors").write_bytes(b"x")
    path = tmp_path / "model.safetensors"
    assert config(path, {}) == {"unet/config.json": b'{"sample_size": 16}'}, "weights are left alone"
    own = config(path, {"diffusers_config": json.dumps(FILES)})
    assert own == {name: text.encode() for name, text in FILES.items()}


def test_without_any_the_error_names_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        LoadError, match=r"brings no configuration: neither metadata key diffusers_config nor model\.con"
    ):
        config(tmp_path / "model.safetensors", {})
