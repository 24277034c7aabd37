"""Headers of checkpoint files: read, or refused with what is wrong and what to do."""

from __future__ import annotations

import errno
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from diffc.compiler.checkpoint.safetensors_header import (
    CONFIG_KEY,
    Header,
    config_of_folder,
    config_of_metadata,
    read_header,
    refuse_partial_models,
    write_config,
)
from diffc.compiler.errors import LoadError

SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)


def refusal(path: Path) -> str:
    """Read a header that must be refused in three lines, and give the message."""
    with pytest.raises(LoadError) as caught:
        read_header(path)
    what, where, fix = str(caught.value).splitlines()
    assert where.startswith("  at:  ") and fix.startswith("  fix: ")
    return what


def written(path: Path, content: bytes) -> Path:
    """Write a file and give its path."""
    path.write_bytes(content)
    return path


def framed(header: str, data: bytes = b"") -> bytes:
    """Frame a text as a safetensors header."""
    return struct.pack("<Q", len(header.encode())) + header.encode() + data


def header_of(*names: str, metadata: dict[str, str] | None = None, path: Path = Path("x.safetensors")) -> Header:
    """Make a header of scalars."""
    return Header(path, {name: () for name in names}, metadata or {})


def test_refuses_a_file_that_is_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    save_file({"a": np.zeros(3)}, tmp_path / "x.safetensors")
    monkeypatch.setattr("diffc.compiler.checkpoint.safetensors_header.mmap", too_large)
    assert "x.safetensors cannot be mapped into memory" in refusal(tmp_path / "x.safetensors")


def test_reads_shapes_and_metadata(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3)), "b": np.zeros(())}, tmp_path / "x.safetensors", metadata={"k": "v"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.shapes == {"a": (2, 3), "b": ()}
    assert header.metadata == {"k": "v"}
    assert header.types == {"a": "F64", "b": "F64"} and header.is_of_floats


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3"])
def test_reads_types_that_numpy_lacks(tmp_path: Path, dtype: str) -> None:
    size = 2 if dtype != "F8_E4M3" else 1
    content = framed(json.dumps({"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}), bytes(size))
    assert read_header(written(tmp_path / "x.safetensors", content)).shapes == {"a": (1,)}


def test_rejects_an_empty_file(tmp_path: Path) -> None:
    assert refusal(written(tmp_path / "x.safetensors", b"")) == "x.safetensors is empty"


def test_rejects_zeros(tmp_path: Path) -> None:
    assert refusal(written(tmp_path / "x.safetensors", bytes(4096))).startswith("x.safetensors starts with zeros")


def test_rejects_a_header_without_tensors(tmp_path: Path) -> None:
    assert refusal(written(tmp_path / "x.safetensors", framed("{}"))) == "x.safetensors holds no tensors"


@pytest.mark.parametrize("kept", [1, 7, 8, 9, 40, 200, -1])
def test_rejects_a_truncated_file(tmp_path: Path, kept: int) -> None:
    save_file({"a": np.ones((64, 64)), "b": np.ones(5)}, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()[:kept]
    assert "is damaged, or no safetensors file" in refusal(written(tmp_path / "x.safetensors", content))


@pytest.mark.parametrize(
    "header",
    [
        "not JSON",
        "[]",
        '{"a": 1}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        '{"a": {"dtype": "F32", "shape": [99999999999, 99999999999, 99999999999], "data_offsets": [0, 4]}}',
    ],
)
def test_rejects_a_wrong_header(tmp_path: Path, header: str) -> None:
    assert "is damaged, or no safetensors file" in refusal(
        written(tmp_path / "x.safetensors", framed(header, bytes(4)))
    )


@given(content=st.binary(max_size=400))
@SHARED_FOLDER
def test_random_bytes_give_nothing_but_a_refusal(tmp_path: Path, content: bytes) -> None:
    refusal(written(tmp_path / "x.safetensors", content))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "I64"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]) | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(header=JSON, data=st.binary(max_size=16))
@SHARED_FOLDER
def test_random_headers_are_read_or_refused(tmp_path: Path, header: object, data: bytes) -> None:
    path = written(tmp_path / "x.safetensors", framed(json.dumps(header), data))
    try:
        assert read_header(path).shapes
    except LoadError as error:
        assert error.fix


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_rejects_a_pickle_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, pickle.dumps({"state_dict": [1.0]}))
    assert refusal(path) == f"{name} is a pickle"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    assert refusal(path) == f"{name} is a pickle in a zip, as torch.save writes it"


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".pkl"])
def test_rejects_the_names_that_pickles_have(tmp_path: Path, suffix: str) -> None:
    assert refusal(written(tmp_path / f"x{suffix}", b"\0\xffanything else")) == f"x{suffix} is a pickle"


def test_a_refused_pickle_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(trace)!r}, 'w')",)

    refusal(written(tmp_path / "x.ckpt", pickle.dumps(Bomb())))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("start", "kind", "fix"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer", "git lfs pull"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file", "--component"),
        (b"<!DOCTYPE html><html>", "a web page", "get the file again"),
    ],
)
def test_names_what_a_file_is_instead(tmp_path: Path, start: bytes, kind: str, fix: str) -> None:
    path = written(tmp_path / "x.safetensors", start)
    assert kind in refusal(path)
    with pytest.raises(LoadError) as caught:
        read_header(path)
    assert fix in (caught.value.fix or "")


def test_rejects_what_cannot_be_opened(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.safetensors") == "gone.safetensors cannot be read: No such file or directory"


@pytest.mark.parametrize(
    "names",
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.lora_up.weight"),
        ("transformer.blocks.0.attn.to_q.lora_A.weight", "transformer.blocks.0.attn.to_q.lora_B.weight"),
        ("lora_te_text_model_0.alpha", "lora_te_text_model_0.hada_w1_a"),
    ],
)
def test_rejects_a_lora(names: tuple[str, ...]) -> None:
    with pytest.raises(LoadError, match="is a LoRA"):
        refuse_partial_models(header_of(*names))


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_rejects_an_autoencoder(prefix: str) -> None:
    names = [f"{prefix}{name}.weight" for name in ("encoder.conv_in", "decoder.conv_in", "post_quant_conv")]
    with pytest.raises(LoadError, match="autoencoder .VAE. only"):
        refuse_partial_models(header_of(*names))


def test_rejects_one_component_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match="is one component of a diffusers folder"):
        refuse_partial_models(header_of("conv_in.weight", path=tmp_path / "x.safetensors"))


def test_accepts_a_model_with_an_adapter_in_it_and_no_adapter_alone() -> None:
    refuse_partial_models(header_of("model.diffusion_model.a", "model.diffusion_model.b", "x.lora_down.weight"))
    with pytest.raises(LoadError, match="is a LoRA"):
        refuse_partial_models(header_of("x.lora_down.weight"))


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd.json", "../x.json", "a/../../x.json", "a//b.json", "./x.json", "C:\\x.json", "a\\b.json"),
        *("x.py", "x", "x.bin", ".json", "~/x.json", "a\x00.json", "a\n.json", "", "é.json", "a/" * 200 + "x.json"),
    ],
)
def test_rejects_a_configuration_path_that_leaves_its_folder(name: str) -> None:
    with pytest.raises(LoadError, match="names a forbidden path"):
        config_of_metadata(header_of("a", metadata={CONFIG_KEY: json.dumps({name: "{}"})}))


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"a.json": 1}', '{"a.json": {}}', "null", "[" * 100_000])
def test_rejects_a_configuration_that_is_no_map_of_texts(text: str) -> None:
    with pytest.raises(LoadError, match="the file's own configuration is no"):
        config_of_metadata(header_of("a", metadata={CONFIG_KEY: text}))


def test_rejects_a_configuration_that_is_too_large() -> None:
    many = {f"{n}.json": "{}" for n in range(1000)}
    with pytest.raises(LoadError, match="the configuration is too large"):
        config_of_metadata(header_of("a", metadata={CONFIG_KEY: json.dumps(many)}))


def test_rejects_a_name_that_is_file_and_folder() -> None:
    files = {"a.json": "{}", "a.json/b.json": "{}"}
    with pytest.raises(LoadError, match="as a file and as a folder"):
        config_of_metadata(header_of("a", metadata={CONFIG_KEY: json.dumps(files)}))


def test_no_configuration_is_no_error() -> None:
    assert config_of_metadata(header_of("a")) == {}


def test_writes_what_it_read(tmp_path: Path) -> None:
    files = {"model_index.json": b"{}", "unet/config.json": b'{"a": 1}', "tokenizer/merges.txt": b"a b\n"}
    write_config(files, tmp_path)
    assert config_of_folder(tmp_path) == files


def test_leaves_weights_and_code_of_a_folder_alone(tmp_path: Path) -> None:
    for name in ("model_index.json", "pipeline.py", "model.safetensors", "model.bin"):
        (tmp_path / name).write_text("{}")
    assert list(config_of_folder(tmp_path)) == ["model_index.json"]


@given(name=st.text(max_size=30))
@SHARED_FOLDER
def test_no_accepted_path_leaves_the_folder(tmp_path: Path, name: str) -> None:
    try:
        files = config_of_metadata(header_of("a", metadata={CONFIG_KEY: json.dumps({name: ""})}))
    except LoadError:
        return
    assert all((tmp_path / accepted).resolve().is_relative_to(tmp_path.resolve()) for accepted in files)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "U8", "BOOL", "I64"])
def test_a_narrow_or_integer_tensor_is_no_weight_by_itself(dtype: str) -> None:
    header = Header(Path("x"), {"a": (2,), "b": (2,)}, {}, {"a": "F16", "b": dtype})
    assert not header.is_of_floats
