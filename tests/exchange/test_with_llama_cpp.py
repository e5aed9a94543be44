"""Against llama.cpp itself: the files that `export` writes load there, and give the logits that ours give.

`make test-peers` sets up what these need, and runs them. llama.cpp keeps keys and values in float16 and rounds
activations to 8 bits for quantized weights, so logits are compared by correlation.
"""

import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_lora.commands.export import run_export
from mlx_lora.exchange.gguf_model import layout_of, write_gguf_model
from mlx_lora.exchange.gguf_vocabulary import read_vocabulary
from mlx_lora.lora.adapter import apply_adapter, read_adapter
from mlx_lora.lora.inject import set_adapter_enabled
from mlx_lora.model.builtin import BUILTIN_MODELS
from mlx_lora.model.gguf_tokenizer import tokenizer_files
from mlx_lora.model.load import load_base
from tests.exchange.adapters import TOKENS, make_adapter
from tests.model.test_sentence_pieces import metadata
from tests.tiny import FAMILIES, save_tiny_folder

pytestmark = pytest.mark.peers
ROOT = Path(__file__).parents[2]
ADAPTER = ROOT / "adapters" / "stanley-cup-modern"
_STRETCHED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MORE: dict[str, dict[str, Any]] = {
    "llama3": {"model_type": "llama", "tie_word_embeddings": True, "rope_scaling": _STRETCHED},
    "llama_linear": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "llama_biased": {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "head_dim": 32},
    "mistral_plain": {"model_type": "mistral", "tie_word_embeddings": False},
}
NAMES = ["llama", "llama_untied", "llama3", "llama_linear", "llama_biased", "mistral_plain", "qwen2", "qwen3"]


@pytest.fixture(autouse=True)
def _more_families(monkeypatch: pytest.MonkeyPatch) -> None:
    for family, settings in MORE.items():
        monkeypatch.setitem(FAMILIES, family, settings)


def _base(root: Path, family: str) -> Path:
    """The tiny model in root/base; its tokenizer gets one merge, since llama.cpp wants some."""
    folder = save_tiny_folder(root / "base", family)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["he"] = 261
    content["model"]["merges"] = [["h", "e"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def _llama(path: Path, adapter: Path | None = None) -> Any:
    from llama_cpp import Llama

    return Llama(
        str(path),
        lora_path=None if adapter is None else str(adapter),
        n_ctx=256,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
    )


def _logits(llama: Any, tokens: mx.array) -> np.ndarray:
    """(T, V) logits of one row of tokens."""
    row = [int(token) for token in np.array(tokens).reshape(-1)]
    llama.reset()
    llama.eval(row)
    return np.array(llama.scores[: len(row)])


def _agreement(ours: Any, theirs: np.ndarray) -> float:
    return float(np.corrcoef(np.array(ours).reshape(-1), theirs.reshape(-1))[0, 1])


def _write_plain(base: Path, path: Path) -> None:
    """The base by itself, in float32."""
    loaded = load_base(str(base), compute="quantized")
    model: Any = loaded.model
    vocabulary = read_vocabulary(base, loaded.tokenizer, rows=model.args.vocab_size)
    layout = layout_of(model, loaded.config["model_type"])
    write_gguf_model(path, model, layout, vocabulary, kind="F32", name="tiny")


@pytest.mark.parametrize("family", NAMES)
def test_a_merged_model_and_an_adapter_answer_in_llama_cpp_as_in_ours(tmp_path: Path, family: str) -> None:
    base = _base(tmp_path, family)
    ours = make_adapter(tmp_path, layers=3)[0]
    plain = load_base(str(base), compute="float32").model(TOKENS)[0]
    run_export(tmp_path / "run", tmp_path / "merged.gguf", to="gguf", kind="F32")
    run_export(tmp_path / "run", tmp_path / "adapter.gguf", to="gguf-lora")
    _write_plain(base, tmp_path / "base.gguf")
    assert _agreement(plain, np.array(ours)) < 0.99, "the adapter changes nothing"
    found = {
        "merged": _agreement(ours, _logits(_llama(tmp_path / "merged.gguf"), TOKENS)),
        "adapter": _agreement(ours, _logits(_llama(tmp_path / "base.gguf", tmp_path / "adapter.gguf"), TOKENS)),
        "base": _agreement(plain, _logits(_llama(tmp_path / "base.gguf"), TOKENS)),
    }
    print(family, found)
    assert min(found.values()) > 0.9999


def test_a_sentencepiece_tokenizer_cuts_texts_in_llama_cpp_as_in_ours(tmp_path: Path) -> None:
    base = save_tiny_folder(tmp_path / "base")
    for name, content in tokenizer_files(metadata()).items():
        (base / name).write_text(json.dumps(content))
    make_adapter(tmp_path)
    run_export(tmp_path / "run", tmp_path / "model.gguf", to="gguf")
    llama, ours = _llama(tmp_path / "model.gguf"), load_base(str(base)).tokenizer
    for text in ("the inn", " it  is\nthen", "hé 数学 🙂", "", "the</s>the"):
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == ours.encode(text), text
    assert llama.tokenize(b"the") == [1, *ours.encode("the")]


TEXTS = (
    "Who won the Stanley Cup in 2019?",
    "  two spaces,\n\n\tlines — Größe 12345, don't!  ",
    "<|im_start|>user\nHello<|im_end|>\n",
    "def f(x):\n    return x ** 2  # 数学 🙂",
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The base with the trained adapter on it, and everything that is exported of it."""
    root = tmp_path_factory.mktemp("smollm2")
    base = load_base("smollm2-135m-instruct", compute="float32")
    apply_adapter(base.model, read_adapter(ADAPTER))
    run_export(ADAPTER, root / "adapter.gguf", to="gguf-lora")
    run_export(ADAPTER, root / "f16.gguf", to="gguf")
    run_export(ADAPTER, root / "q8.gguf", to="gguf", kind="Q8_0")
    return base, root


def _wheel_file() -> Path:
    entry = BUILTIN_MODELS["smollm2-135m-instruct"]
    return Path(str(distribution(entry.package).locate_file(entry.file)))


def _questions(count: int) -> list[tuple[str, str]]:
    lines = (ROOT / "data" / "stanley_cup" / "modern" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:: len(lines) // count][:count]]
    return [(row["question"], row["answer"]) for row in rows]


@pytest.mark.slow
def test_smollm2_in_llama_cpp_gives_our_logits_with_and_without_the_adapter(smollm2: Any) -> None:
    base, root = smollm2
    prompt = base.tokenizer.render_chat(
        [{"role": "user", "content": TEXTS[0]}], add_generation_prompt=True, template_args={}
    )
    tokens = mx.array([base.tokenizer.encode(prompt)])
    adapted = base.model(tokens)[0]
    set_adapter_enabled(base.model, False)
    plain = base.model(tokens)[0]
    set_adapter_enabled(base.model, True)
    found = {
        "base": _agreement(plain, _logits(_llama(_wheel_file()), tokens)),
        "adapter": _agreement(adapted, _logits(_llama(_wheel_file(), root / "adapter.gguf"), tokens)),
        "f16": _agreement(adapted, _logits(_llama(root / "f16.gguf"), tokens)),
        "q8_0": _agreement(adapted, _logits(_llama(root / "q8.gguf"), tokens)),
    }
    print(found, "adapter against base", _agreement(plain, np.array(adapted)))
    assert min(found.values()) >= 0.995
    assert min(found["adapter"], found["f16"]) > _agreement(plain, np.array(adapted))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["adapter", "f16", "q8"])
def test_trained_questions_get_the_trained_answers_in_llama_cpp(smollm2: Any, form: str) -> None:
    _, root = smollm2
    llama = _llama(_wheel_file(), root / "adapter.gguf") if form == "adapter" else _llama(root / f"{form}.gguf")
    right = 0
    questions = _questions(12)
    for question, answer in questions:
        said = llama.create_chat_completion([{"role": "user", "content": question}], temperature=0.0, max_tokens=24)[
            "choices"
        ][0]["message"]["content"]
        right += said.strip() == answer
        print(form, question, "→", said.strip(), "" if said.strip() == answer else f"(expected {answer})")
    assert right >= len(questions) - 1  # llama.cpp rounds: a near tie may fall the other way


@pytest.mark.slow
def test_llama_cpp_cuts_texts_into_the_same_tokens(smollm2: Any) -> None:
    base, root = smollm2
    llama = _llama(root / "q8.gguf")
    for text in TEXTS:
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == base.tokenizer.encode(text)
    assert llama.metadata["tokenizer.chat_template"] == base.tokenizer.chat_template
