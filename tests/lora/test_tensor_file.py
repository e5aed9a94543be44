"""safetensors files: what is written can be read by anyone, and nothing damaged is let through."""

import json
import struct
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lora.errors import AdapterError, MlxLoraError
from mlx_lora.lora.tensor_file import check_header, encode_tensors, read_tensors

PLACE = Path("adapters.safetensors")


def _file(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def tensors() -> dict[str, mx.array]:
    return {
        "b.lora_b": mx.array([[1.5, -2.0], [0.25, 3.0]]),
        "a.lora_a": mx.arange(3).astype(mx.bfloat16),
        "empty": mx.zeros((0, 4)),
        "scalar": mx.array(2.5).astype(mx.float16),
    }


def test_a_written_file_reads_back_bitwise_here_and_in_mlx(tmp_path, tensors):
    path = tmp_path / "adapters.safetensors"
    path.write_bytes(encode_tensors(tensors, {"format": "mlx"}))
    for read in (read_tensors(path), mx.load(str(path))):
        assert set(read) == set(tensors)
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert read[name].shape == tensor.shape
            assert mx.array_equal(read[name], tensor)


def test_equal_tensors_give_equal_bytes_whatever_their_order_and_layout(tensors):
    turned = {name: tensor.T if name == "b.lora_b" else tensor for name, tensor in reversed(tensors.items())}
    turned["b.lora_b"] = mx.array([[1.5, 0.25], [-2.0, 3.0]]).T
    assert encode_tensors(turned, {}) == encode_tensors(tensors, {})


def test_tensors_begin_at_a_multiple_of_eight_bytes(tensors):
    length = struct.unpack("<Q", encode_tensors(tensors, {"a": "b"})[:8])[0]
    assert length % 8 == 0


BODY = struct.pack("<2f", 1.0, 2.0)
FAULTS = {
    "empty file": (b"", "0 bytes do not hold the header"),
    "shorter than a length": (b"\x01\x00\x00", "3 bytes do not hold the header"),
    "header beyond the end": (struct.pack("<Q", 100) + b"{}", "10 bytes do not hold the header"),
    "length of 2**63": (struct.pack("<Q", 2**63) + b"{}", "do not hold the header"),
    "not JSON": (_file(b'{"a": }'), "the header is no JSON"),
    "not UTF-8": (_file(b'{"\xff": 1}'), "the header is no JSON"),
    "a list": (_file([]), "the header is no JSON object"),
    "leading spaces": (_file(b'  {"a": 1}'), "the header is no JSON object"),
    "a name twice": (
        _file(f'{{"a": {json.dumps(_entry())}, "a": {json.dumps(_entry())}}}'.encode(), BODY),
        "'a' stands twice",
    ),
    "a key twice in an entry": (_file(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' stands twice"),
    "metadata with numbers": (_file({"__metadata__": {"step": 3}}), "no mapping of text to text"),
    "metadata as a list": (_file({"__metadata__": []}), "no mapping of text to text"),
    "an entry that is a number": (_file({"a": 3}), "a: its entry does not give exactly"),
    "an entry with more": (_file({"a": {**_entry(), "x": 1}}, BODY), "a: its entry does not give exactly"),
    "unknown dtype": (_file({"a": _entry(dtype="F31")}, BODY), "a: unknown dtype 'F31'"),
    "dtype that is a list": (_file({"a": _entry(dtype=["F32"])}, BODY), "a: unknown dtype"),
    "negative shape": (_file({"a": _entry(shape=[-2])}, BODY), "whole numbers ≥ 0"),
    "shape of booleans": (_file({"a": _entry(shape=[True, 2])}, BODY), "whole numbers ≥ 0"),
    "shape of fractions": (_file({"a": _entry(shape=[2.0])}, BODY), "whole numbers ≥ 0"),
    "three offsets": (_file({"a": _entry(offsets=[0, 4, 8])}, BODY), "whole numbers ≥ 0"),
    "offsets the wrong way round": (_file({"a": _entry(offsets=[8, 0])}, BODY), "bytes 8 to 0 lie outside"),
    "offsets beyond the end": (_file({"a": _entry(offsets=[0, 16], shape=[4])}, BODY), "bytes 0 to 16 lie outside"),
    "shape larger than its bytes": (_file({"a": _entry(shape=[3])}, BODY), "8 bytes cannot hold shape [3] of F32"),
    "shape whose size overflows": (_file({"a": _entry(shape=[2**32, 2**32])}, BODY), "8 bytes cannot hold shape"),
    "overlap": (
        _file({"a": _entry(), "b": _entry(offsets=[4, 8], shape=[1])}, BODY),
        "b begins at byte 4, the tensor before it ends at 8",
    ),
    "hole": (
        _file({"a": _entry(offsets=[4, 8], shape=[1])}, BODY),
        "a begins at byte 4, the tensor before it ends at 0",
    ),
    "truncated": (_file({"a": _entry()}, BODY[:-1]), "bytes 0 to 8 lie outside the file's 7"),
    "too long": (_file({"a": _entry()}, BODY + b"\x00"), "9 bytes of tensors, the header describes 8"),
    "empty name": (_file({"": _entry()}, BODY), "'' is no name"),
    "name with a newline": (_file({"a\nb": _entry()}, BODY), "is no name"),
    "endless name": (_file({"a" * 2000: _entry()}, BODY), "is no name"),
    "deep nesting": (_file(b'{"a":' * 50_000), "the header is no JSON"),
}


@pytest.mark.parametrize(("content", "fact"), FAULTS.values(), ids=FAULTS)
def test_a_damaged_file_is_refused_with_its_place_and_fact(tmp_path, content, fact):
    """mlx#3363, mlx#4245: MLX maps what a header says without checking it."""
    path = tmp_path / "adapters.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterError) as raised:
        read_tensors(path)
    assert raised.value.message.startswith(f"{path}: ")
    assert fact in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_by_name(tmp_path, value):
    path = tmp_path / "adapters.safetensors"
    path.write_bytes(encode_tensors({"good": mx.zeros(2), "bad": mx.array([0.0, value])}, {}))
    with pytest.raises(AdapterError, match="bad holds NaN or infinity"):
        read_tensors(path)


@pytest.mark.parametrize("dtype", ["I64", "U8", "F64", "BOOL"])
def test_an_adapter_of_another_type_of_number_is_refused(tmp_path, dtype):
    path = tmp_path / "adapters.safetensors"
    size = {"I64": 8, "U8": 1, "F64": 8, "BOOL": 1}[dtype]
    path.write_bytes(_file({"a": _entry(shape=[1], offsets=[0, size], dtype=dtype)}, bytes(size)))
    with pytest.raises(AdapterError, match=f"a holds {dtype}, expected one of F32, F16, BF16"):
        read_tensors(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MlxLoraError, match="no-such"):
        read_tensors(tmp_path / "no-such.safetensors")


@given(st.binary(max_size=200))
def test_no_bytes_at_all_raise_anything_but_an_adapter_error(content):
    try:
        check_header(content, PLACE)
    except AdapterError:
        return
    assert content[8:].strip() == b"{}" or b"__metadata__" in content


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8", "X"]) | _JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 20), min_size=2, max_size=2) | _JSON,
    }
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), _ENTRIES | _JSON, max_size=3), st.integers(0, 24))
def test_every_header_that_passes_covers_the_file_exactly_once(header, size):
    try:
        entries = check_header(_file(header, bytes(size)), PLACE)
    except AdapterError:
        return
    covered = [byte for entry in entries.values() for byte in range(entry.start, entry.end)]
    assert sorted(covered) == list(range(size))


@pytest.mark.parametrize("place", [60, -1])
def test_a_flipped_bit_of_a_file_that_we_wrote_is_found(tmp_path, tensors, place):
    path = tmp_path / "adapters.safetensors"
    content = bytearray(encode_tensors(tensors, {"format": "mlx"}))
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterError, match="its checksum differs"):
        read_tensors(path)


def test_a_file_of_others_has_no_checksum_and_is_read_all_the_same(tmp_path, tensors):
    path = tmp_path / "adapters.safetensors"
    mx.save_safetensors(str(path), tensors, {"format": "mlx"})
    assert set(read_tensors(path)) == set(tensors)


@given(st.data())
def test_a_flipped_bit_in_the_header_never_reads_as_other_tensors(data):
    content = bytearray(encode_tensors({"m.lora_a": mx.ones((2, 3)), "m.lora_b": mx.ones((3, 2))}, {}))
    intact = check_header(bytes(content), PLACE)
    length = struct.unpack("<Q", content[:8])[0]
    position = data.draw(st.integers(0, 8 + length - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        entries = check_header(bytes(content), PLACE)
    except AdapterError:
        return
    # Only names, shapes of the same size and dtypes of the same width can still pass; what holds them is checked later.
    assert {(entry.start, entry.end) for entry in entries.values()} == {
        (entry.start, entry.end) for entry in intact.values()
    }
