"""The real base and real adapters, tiny: prompts as in training, caches that never mix."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_lora.chat.sampling import Sampling
from mlx_lora.chat.voice import Voice, context_length, load_voice
from mlx_lora.config import DataSettings, LoraSettings
from mlx_lora.dataset.examples import build_example, record_prompt
from mlx_lora.dataset.record import Message, Record
from mlx_lora.errors import AdapterError, ModelError
from mlx_lora.lora.adapter import save_adapter
from mlx_lora.lora.inject import inject_lora, iter_lora_modules, remove_lora
from mlx_lora.model.load import LoadedModel, load_base
from tests.tiny import CHATML, save_tiny_folder

THINKING = CHATML.replace("<|im_start|>assistant\n'", "<|im_start|>assistant\n<think>\n'")
TURNS: list[Message] = [
    {"role": "user", "content": "Who won in 1994?"},
    {"role": "assistant", "content": "Rangers"},
    {"role": "user", "content": "And in 1995?"},
]


def write_adapter(folder: Path, base: LoadedModel, *, rank: int, identity: Any = None, **facts: Any) -> Path:
    """An adapter of random weights on `base`, which is left as it was."""
    settings = LoraSettings.model_validate({"rank": rank, "alpha": 2.0 * rank})
    inject_lora(base.model, settings, seed=rank)
    for index, (_, layer) in enumerate(iter_lora_modules(base.model)):
        layer.lora_b = 0.2 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(100 * rank + index))
    metadata = {"identity": identity or asdict(base.identity), "model": str(base.path), "revision": None, **facts}
    save_adapter(folder, base.model, settings=settings, metadata=metadata)
    remove_lora(base.model)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, adapters/four (with a system prompt), adapters/eight, adapters/foreign (another base's)."""
    folder = tmp_path_factory.mktemp("voice")
    base = load_base(str(save_tiny_folder(folder / "base")))
    adapters = folder / "adapters"
    write_adapter(adapters / "four", base, rank=4, system_prompt="Be brief.")
    write_adapter(adapters / "eight", base, rank=8)
    write_adapter(adapters / "thinking", base, rank=2, chat_template=THINKING)
    other = {**asdict(base.identity), "name": "other", "config_sha256": "0" * 64, "weights_sha256": "1" * 64}
    write_adapter(adapters / "foreign", base, rank=4, identity=other)
    return folder


@pytest.fixture
def adapters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return Path("adapters")


@pytest.fixture(scope="module")
def base(folder: Path) -> LoadedModel:
    return load_base(str(folder / "base"))


@pytest.fixture
def voice(base: LoadedModel) -> Voice:
    remove_lora(base.model)
    return Voice(base)


def answer(voice: Voice, messages: Sequence[Message] = TURNS, tokens: int = 12) -> list[int | None]:
    prompt = voice.render(messages)
    return [piece.token for piece in voice.stream(prompt, Sampling(max_tokens=tokens), 0)]


def reused(voice: Voice, messages: Sequence[Message]) -> int:
    return next(voice.stream(voice.render(messages), Sampling(max_tokens=1), 0)).reused_tokens


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_prompt_is_the_one_that_training_rendered(voice: Voice, system: str | None) -> None:
    settings = DataSettings.model_validate({"train": "x", "system_prompt": system})
    record = Record((*TURNS, {"role": "assistant", "content": "Devils"}), format="chat")
    example = build_example(record, voice.base.tokenizer, settings)
    assert example is not None
    starts = np.flatnonzero(np.diff(example.loss_mask.astype(int)) == 1) + 1
    messages = TURNS if system is None else [{"role": "system", "content": system}, *TURNS]
    assert voice.render(messages) == example.tokens[: starts[-1]].tolist()


def test_the_adapters_facts_set_the_prompt_and_its_folder_the_name(voice: Voice, adapters: Path) -> None:
    attached = voice.use(adapters / "four")
    assert voice.rendering.system_prompt == "Be brief."
    assert (voice.label, attached.residents[0].applied.active_modules) == ("four", "28/28")


def test_the_adapters_own_template_is_used_and_may_open_a_thinking_block(voice: Voice, adapters: Path) -> None:
    plain = voice.render(TURNS)
    assert not voice.opens_thinking(plain)
    voice.use(adapters / "thinking")
    prompt = voice.render(TURNS)
    assert prompt == plain + voice.base.tokenizer.encode("<think>\n")
    assert voice.opens_thinking(prompt)
    voice.use(adapters / "eight")
    assert voice.render(TURNS) == plain


def test_swapping_answers_as_fresh_loads_do_and_caches_never_mix(folder: Path, voice: Voice, adapters: Path) -> None:
    fresh = {}
    for name in ("four", "eight"):
        fresh[name] = answer(load_voice([adapters / name], model=None, revision=None))
    fresh["base"] = answer(load_voice([], model=str(folder / "base"), revision=None))
    assert len({tuple(tokens) for tokens in fresh.values()}) == 3
    assert answer(voice) == fresh["base"]
    for name in ("four", "eight", "four"):
        voice.use(adapters / name)
        assert answer(voice) == fresh[name]
        voice.switch(False)
        assert answer(voice) == fresh["base"]
        voice.switch(True)
        assert answer(voice) == fresh[name]


def test_switching_off_keeps_the_prompt_as_the_adapter_wants_it(voice: Voice, adapters: Path) -> None:
    voice.use(adapters / "four")
    voice.switch(False)
    assert voice.label == "base"
    assert voice.rendering.system_prompt == "Be brief."


def test_each_cache_is_kept_for_its_adapter_until_it_is_forgotten(voice: Voice, adapters: Path) -> None:
    prompt = voice.render(TURNS)
    voice.use(adapters / "four")
    assert reused(voice, TURNS) == 0
    voice.switch(False)
    assert reused(voice, TURNS) == 0
    voice.switch(True)
    assert reused(voice, TURNS) == len(prompt) - 1
    voice.use(adapters / "eight")
    assert reused(voice, TURNS) == 0
    voice.use(adapters / "four")
    assert reused(voice, TURNS) == len(prompt) - 1
    voice.forget()
    assert reused(voice, TURNS) == 0


def test_an_adapter_trained_anew_in_the_same_folder_gets_a_cache_of_its_own(
    voice: Voice, adapters: Path, base: LoadedModel, tmp_path: Path
) -> None:
    path = write_adapter(tmp_path / "again", base, rank=4)
    voice.use(path)
    answer(voice)
    remove_lora(base.model)
    write_adapter(path, base, rank=4)
    os.utime(path / "adapters.safetensors", ns=(1, 1))
    voice.use(path)
    assert reused(voice, TURNS) == 0


def test_only_the_four_caches_used_last_are_kept(voice: Voice, base: LoadedModel, tmp_path: Path) -> None:
    paths = [write_adapter(tmp_path / str(rank), base, rank=rank) for rank in range(1, 6)]
    for path in paths:
        voice.use(path)
        answer(voice, tokens=1)
    voice.use(paths[1])
    assert reused(voice, TURNS) > 0
    voice.use(paths[0])
    assert reused(voice, TURNS) == 0


def test_an_adapter_of_another_base_is_refused_and_the_one_before_stays(voice: Voice, adapters: Path) -> None:
    bare = answer(voice)
    voice.use(adapters / "four")
    before = answer(voice)
    voice.switch(False)
    with pytest.raises(AdapterError, match="other"):
        voice.use(adapters / "foreign")
    voice.forget()  # so that the answers are computed anew
    assert (voice.label, answer(voice)) == ("base", bare)
    voice.switch(True)
    voice.forget()
    assert (voice.label, answer(voice)) == ("four", before)
    assert before != bare


def test_an_adapter_on_the_bare_base_is_refused_without_a_trace(voice: Voice, adapters: Path) -> None:
    before = answer(voice)
    with pytest.raises(AdapterError, match="other"):
        voice.use(adapters / "foreign")
    assert (voice.label, answer(voice)) == ("base", before)
    with pytest.raises(AdapterError, match="no adapter is loaded"):
        voice.switch(False)


def test_a_conversation_longer_than_the_context_is_refused_and_the_last_token_fits(voice: Voice) -> None:
    def asked(size: int) -> list[Message]:
        return [{"role": "user", "content": "x" * size}]

    frame = len(voice.render(asked(0)))
    assert voice.context == 512
    assert len(answer(voice, asked(511 - frame))) == 2  # one token, and the end for want of room
    with pytest.raises(ModelError, match="the conversation is 512 tokens long with this question, and base reads at"):
        answer(voice, asked(512 - frame))


def test_an_unknown_base_is_asked_for(folder: Path, base: LoadedModel, tmp_path: Path) -> None:
    remove_lora(base.model)
    write_adapter(tmp_path / "nameless", base, rank=4, model=None)
    with pytest.raises(AdapterError) as caught:
        load_voice([tmp_path / "nameless"], model=None, revision=None)
    assert caught.value.hint == "name the base with --model"
    voice = load_voice([tmp_path / "nameless"], model=str(folder / "base"), revision=None)
    assert voice.label == str(tmp_path / "nameless")


def test_a_base_without_a_chat_template_is_asked_in_plain_words(tmp_path: Path) -> None:
    path = save_tiny_folder(tmp_path / "plain", chat_template=None)
    voice = load_voice([], model=str(path), revision=None)
    prompt = voice.render([{"role": "user", "content": "Who?"}])
    assert voice.base.tokenizer.decode(prompt) == "Question: Who?\nAnswer:"
    assert not voice.opens_thinking(prompt)


def test_several_adapters_stay_resident_and_the_first_answers(adapters: Path) -> None:
    voice = load_voice([adapters / "four", adapters / "eight"], model=None, revision=None)
    assert [Path(name).name for name in voice.bank.names] == ["four", "eight"]
    assert voice.lookup(voice.bank.names[1]).size.startswith("28/28 modules, ‖ΔW‖/‖W‖ = ")
    assert Path(voice.label).name == "four"


def test_a_mix_is_named_by_weight_has_a_cache_of_its_own_and_takes_the_first_ones_prompts(
    voice: Voice, adapters: Path
) -> None:
    voice.use("four")
    alone = answer(voice)
    attached = voice.use("four:0.7+eight:0.3")
    assert voice.label == "four:0.7+eight:0.3"
    assert attached.line == "mixed by weight on 28 modules"
    assert attached.notes == ("prompts are written as four wants them; eight was trained with others",)
    assert voice.rendering.system_prompt == "Be brief."
    assert reused(voice, TURNS) == 0
    assert answer(voice) != alone
    voice.use("four")
    assert answer(voice) == alone


def test_aside_others_may_answer_and_afterwards_it_is_who_it_was(voice: Voice, adapters: Path) -> None:
    voice.use(adapters / "four")
    voice.switch(False)
    before = answer(voice)
    with voice.aside():
        voice.use(adapters / "thinking")
        with pytest.raises(AdapterError, match="other"):
            voice.use(adapters / "foreign")
        assert voice.label == "thinking"
    assert (voice.label, voice.rendering.system_prompt) == ("base", "Be brief.")
    voice.forget()
    assert answer(voice) == before
    voice.switch(True)
    assert Path(voice.label).name == "four"


def test_a_name_of_ones_own_is_not_given_twice(voice: Voice, adapters: Path) -> None:
    assert voice.add(adapters / "four", "support") == "support"
    with pytest.raises(AdapterError, match="support: there is an adapter of this name already"):
        voice.add(adapters / "eight", "support")
    voice.answer_as("support")
    assert voice.label == "support"


def test_without_a_template_an_adapter_is_asked_as_its_rows_were_written(tmp_path: Path) -> None:
    base = load_base(str(save_tiny_folder(tmp_path / "plain", chat_template=None)))
    asked: list[Message] = [{"role": "user", "content": "Who?"}]
    for formats, prompt in (
        ([], "Question: Who?\nAnswer:"),
        (["prompt/completion"], "Who?"),
        (["text"], "Who?"),
        (["alpaca", "question/answer"], "Question: Who?\nAnswer:"),
        (["alpaca"], "### Instruction:\nWho?\n\n### Response:\n"),
    ):
        folder = write_adapter(tmp_path / "-".join(formats).replace("/", "-"), base, rank=2, row_formats=formats)
        voice = load_voice([folder], model=None, revision=None)
        assert voice.base.tokenizer.decode(voice.render(asked)) == prompt
        record = Record((*asked, {"role": "assistant", "content": "Ann"}), answers=("Ann",), format="question/answer")
        rendering = voice.rendering
        trained = replace(record, format=rendering.row_format(record.format))
        # What eval asks is what chat asks.
        assert record_prompt(trained, voice.base.tokenizer, rendering.settings()) == voice.render(asked)


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024, "n_ctx": 512}, 1024),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": None}, None),
        ({}, None),
    ],
)
def test_the_context_is_read_from_the_models_config(config: dict[str, Any], tokens: int | None) -> None:
    assert context_length(config) == tokens
