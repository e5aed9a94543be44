"""Safetensors headers are not trusted, and fingerprints name contents, not files."""

import json
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mlx_lora.errors import MlxLoraError, ModelError
from mlx_lora.model.weights import fingerprint_weights, read_header, read_headers, weight_files


def _raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _tensors(scale: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "big": (random.standard_normal((64, 512)) * scale).astype(np.float32),
        "norm": np.ones(7, np.float16),
        "empty": np.zeros((0, 3), np.float32),
    }


def test_a_header_gives_each_tensors_place(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    tensors = read_header(tmp_path / "model.safetensors")
    assert set(tensors) == {"big", "norm", "empty"}
    norm = tensors["norm"]
    assert (norm.dtype, norm.shape, norm.size) == ("F16", (7,), 14)
    content = (tmp_path / "model.safetensors").read_bytes()
    assert np.frombuffer(content[norm.start : norm.start + norm.size], np.float16).tolist() == [1.0] * 7


@settings(deadline=None)
@given(cut=st.integers(0, 1200))
def test_a_file_cut_off_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    save_file({"a": np.arange(256, dtype=np.float32)}, folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    assert len(content) > 1000
    (folder / "model.safetensors").write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(ModelError) as caught:
        read_header(folder / "model.safetensors")
    assert "model.safetensors" in caught.value.message
    assert "again" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("header", "data", "fact"),
    [
        (b"{nonsense", b"", "no JSON: "),
        ([1], b"", "no JSON object"),
        ({"a": _entry([2], 0, 4)}, b"1234", r"a: 4 bytes cannot hold shape \[2\] of F32"),
        ({"a": _entry([-1], 0, -4)}, b"", "whole numbers"),
        ({"a": _entry([2**62, 4], 0, 8)}, b"12345678", "a: 8 bytes cannot hold shape"),
        (
            {"a": _entry([1], 0, 4), "b": _entry([1], 2, 6)},
            b"123456",
            "b begins at byte 2, the tensor before it ends at 4",
        ),
        ({"a": _entry([1], 4, 8)}, b"12345678", "a begins at byte 4, the tensor before it ends at 0"),
        ({"a": _entry([1], 0, 4)}, b"12345678", "8 bytes of tensors, the header describes 4"),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234", "unknown dtype 'F99'"),
        ({"a": "x"}, b"", "does not give exactly"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}, b"1234", "whole numbers"),
        (b'{"a":' * 50_000, b"", "nested too deeply"),
        (b'{"a": 1, "a": 2}', b"", "'a' stands twice"),
    ],
)
def test_a_header_that_lies_is_refused(header: object, data: bytes, fact: str, tmp_path: Path) -> None:
    """https://github.com/ml-explore/mlx/issues/3363, https://github.com/ml-explore/mlx/issues/4245"""
    with pytest.raises(ModelError, match=fact):
        read_header(_raw(tmp_path / "model.safetensors", header, data))


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_header_or_an_error_for_the_user(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    path.write_bytes(content)
    with suppress(ModelError):
        assert sum(tensor.size for tensor in read_header(path).values()) < len(content)


def test_two_files_with_one_tensor_are_not_one_model(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model.safetensors"):
        save_file(_tensors(), tmp_path / name)
    with pytest.raises(ModelError, match=r"model\.safetensors: holds big, and so does model-1\.safetensors"):
        read_headers(weight_files(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "link to nothing", "link to itself"])
def test_what_is_no_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("model.safetensors" if kind == "link to itself" else "gone")
    with pytest.raises(MlxLoraError, match=r"model\.safetensors: (Is a directory|No such file|Too many levels)"):
        read_header(path)


def test_an_index_that_names_a_missing_file_is_an_error(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ModelError, match=r"model-00002-of-00002.safetensors is missing \(1 of 2\)"):
        weight_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ModelError, match="outside"):
        weight_files(tmp_path)
    index.write_text("[]")
    with pytest.raises(ModelError, match="not an index"):
        weight_files(tmp_path)


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model.gguf", "weights.pt"])
def test_only_safetensors_count_as_weights(other: str, tmp_path: Path) -> None:
    (tmp_path / other).write_bytes(b"pickle")
    with pytest.raises(ModelError, match=rf"no model\*.safetensors, only {other}") as caught:
        weight_files(tmp_path)
    assert "mlx_lm.convert" in str(caught.value.hint)


def test_a_fingerprint_does_not_depend_on_how_tensors_lie_in_files(tmp_path: Path) -> None:
    tensors = _tensors()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "mlx"})
    save_file({"norm": tensors["norm"]}, tmp_path / "model-2.safetensors")
    save_file({"big": tensors["big"], "empty": tensors["empty"]}, tmp_path / "model-1.safetensors")
    whole = fingerprint_weights([tmp_path / "model.safetensors"])
    assert fingerprint_weights([tmp_path / "model-2.safetensors", tmp_path / "model-1.safetensors"]) == whole


@pytest.mark.parametrize("change", ["scale", "norm", "name", "dtype", "shape"])
def test_a_fingerprint_changes_with_any_tensor(change: str, tmp_path: Path) -> None:
    tensors = _tensors()
    save_file(tensors, tmp_path / "a.safetensors")
    if change == "scale":
        tensors = _tensors(1.001)
    elif change == "norm":
        tensors["norm"][3] = 2
    elif change == "name":
        tensors["other"] = tensors.pop("norm")
    elif change == "dtype":
        tensors["norm"] = tensors["norm"].view(np.int16)
    else:
        tensors["big"] = tensors["big"].reshape(512, 64)
    save_file(tensors, tmp_path / "b.safetensors")
    first, second = (fingerprint_weights([tmp_path / f"{name}.safetensors"]) for name in "ab")
    assert len(first) == 64
    assert first != second


@pytest.mark.parametrize("place", [0, 64 * 512 // 2, -1])
def test_a_large_tensor_is_sampled_at_its_start_middle_and_end(place: int, tmp_path: Path) -> None:
    tensors = _tensors()
    save_file(tensors, tmp_path / "a.safetensors")
    tensors["big"].reshape(-1)[place] += 1
    save_file(tensors, tmp_path / "b.safetensors")
    assert fingerprint_weights([tmp_path / "a.safetensors"]) != fingerprint_weights([tmp_path / "b.safetensors"])
