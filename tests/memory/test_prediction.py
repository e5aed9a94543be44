"""Predicted memory against measured: whole tiny models of twelve layers beside what slices of them told."""

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx_lora  # isort: skip  # before mlx.core: it loads OpenBLAS
import mlx.core as mx
import numpy as np
import pytest

from mlx_lora.commands import preflight
from mlx_lora.commands.replay import stand_in_rows
from mlx_lora.commands.train import run_train
from mlx_lora.config import RunConfig
from mlx_lora.dataset.examples import Example, Expected
from mlx_lora.lora.inject import inject_lora
from mlx_lora.memory import fitting, prediction, probe
from mlx_lora.memory.bound import Bounds, find_bounds, find_contrast
from mlx_lora.memory.prediction import REPLAY, RETENTION, STEP, Slices, predict
from mlx_lora.memory.rows import Asked, Counting, RunRows, longer, worst_batch
from mlx_lora.memory.thin import cut_slice
from mlx_lora.model.generate import iter_answers, iter_nats
from mlx_lora.model.load import load_base
from mlx_lora.training.contrast import contrast_adapters
from mlx_lora.training.loop import Schedule
from tests.memory.settled import settled
from tests.tiny import FAMILIES, save_tiny_folder
from tests.training.rows import random_rows

assert mlx_lora
PLENTY = 2**40


class Mute:
    """A tokenizer for answers that nobody reads."""

    eos_ids: frozenset[int] = frozenset()

    def decode(self, tokens: Sequence[int]) -> str:
        return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    for family in ("llama", "gemma3", "mixtral"):
        save_tiny_folder(folder / family, family, layers=12)
    save_tiny_folder(folder / "small", layers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES["llama"], "vocab_size", 8192)
        save_tiny_folder(folder / "many words", layers=12)
    rows = [{"question": f"{n} " + "word " * (5 + n % 20), "answer": "yes " * (1 + n % 5)} for n in range(24)]
    long_and_short = [{"question": f"{n} " + "word " * 30, "answer": "y"} for n in range(8)]
    long_and_short += [{"question": f"{n}?", "answer": "yes " * 15} for n in range(8)]
    for name, lines in (("train", rows), ("long questions or answers", long_and_short)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def run_config(folder: Path, family: str = "llama", **sections: dict[str, Any]) -> RunConfig:
    # Not compiled: on a CPU every new kernel waits for a C++ compiler.
    parts = ["supervised_positions", "shared_prefix", "frozen_layers"]
    train = {"epochs": 1, "batch_size": 4, "retention": None, "engine": parts, **sections.pop("train", {})}
    data = {"train": "train.jsonl", "valid_share": 0.0, **sections.pop("data", {})}
    data["train"] = str(folder / data["train"])
    return RunConfig.model_validate(
        {"model": str(folder / family), "data": data, "train": train, "output_dir": str(folder / "out"), **sections}
    )


def run_rows(config: RunConfig) -> RunRows:
    from mlx_lora.commands.rundata import load_run_tokenizer
    from mlx_lora.dataset.inspection import build_split_examples
    from mlx_lora.dataset.splits import load_splits

    splits, tokenizer = load_splits(config.data, config.train.seed), load_run_tokenizer(config)
    return preflight.sized_run(config, tokenizer, splits, build_split_examples(splits, tokenizer, config.data))[1]


def measured_step_peak(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """What a real run says of its steps; what other tests left in memory does not count."""
    monkeypatch.setattr("mlx_lora.commands.train.fit_run", lambda config, rows: "")
    path = Path(config.output_dir).parent / "run.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    gc.collect()  # what other tests left must not go while this is measured
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    run_train(path, overwrite=True)
    events = map(json.loads, (Path(config.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return max(event["peak_bytes"] for event in events if event["event"] == "step") - before


@pytest.mark.parametrize(
    ("family", "sections"),
    [
        ("llama", {"train": {"engine": "auto"}}),
        ("llama", {"train": {"engine": "plain"}}),
        ("gemma3", {"train": {"gradient_checkpointing": True}}),
        ("mixtral", {"train": {"gradient_accumulation_steps": 3}, "lora": {"rank": 8, "layers": 6}}),
        ("many words", {"data": {"train": "long questions or answers.jsonl"}}),
    ],
    ids=["all parts", "plain", "checkpointing", "frozen experts", "most trained positions"],
)
def test_a_step_is_predicted_to_fifteen_percent_and_hardly_ever_too_low(
    folder: Path, family: str, sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(folder, family, **sections)
    rows = run_rows(config)

    def ratio() -> float:
        predicted = predict(Slices(config, rows, folder, PLENTY))
        assert find_bounds(config, rows).most > 2 * predicted.worst.total
        assert predicted.step.optimizer == 2 * predicted.step.adapter  # AdamW: two moments
        return predicted.step.total / measured_step_peak(config, monkeypatch)

    assert 0.95 < settled(ratio, 0.95, 1.15) < 1.15


def test_a_slice_keeps_some_layers_of_each_kind_and_knows_the_whole_model(folder: Path) -> None:
    cut = cut_slice(run_config(folder, "gemma3", lora={"layers": 6}), 2, kind=3, more=1)
    # Sliding and global layers take turns; the upper six have adapters.
    assert cut.kinds.of == (0, 1) * 3 + (2, 3) * 3
    assert cut.counts == [2, 2, 2, 3]
    assert cut.kinds.counts == [3, 3, 3, 3]
    assert cut.first_layer == 6


@pytest.mark.usefixtures("one_task_at_a_time")
def test_the_largest_batch_and_the_longest_row_fill_the_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_POSITIONS", 512)
    config = run_config(folder, "small", train={"batch_size": 6})
    slices = Slices(config, run_rows(config), folder, PLENTY)
    rows = sorted(slices.rows.train, key=lambda row: len(row.tokens))
    room = slices.step([rows[-1 - place % 24] for place in range(16)]).total
    assert fitting.largest_batch(slices, room).most == pytest.approx(16, rel=0.15)
    assert fitting.largest_batch(slices, 1000).most == 0
    room = slices.step([longer(row, 300) for row in rows[-6:]]).total
    assert fitting.longest_row(slices, room).most == pytest.approx(300, rel=0.2)
    assert fitting.longest_row(slices, 1000).most == 0


def test_auto_takes_the_largest_power_of_two_that_fits_and_keeps_an_epoch_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(folder, train={"batch_size": "auto"})
    few = run_rows(config)
    many = RunRows([*few.train] * 40, [])
    # A batch of n rows needs n bytes more than the bound lets pass.
    monkeypatch.setattr(fitting, "find_bounds", lambda *_: Bounds(0, PLENTY, 0))
    monkeypatch.setattr(fitting, "peak_bytes", lambda config, *_: config.train.batch_rows)

    def taken(rows: RunRows, room: int) -> int:
        return fitting.resolve_batch_size(config, rows, folder, room).train.batch_rows

    assert [taken(many, room) for room in (1000, 32, 31, 9, 1, 0)] == [32, 32, 16, 8, 1, 1]
    assert taken(few, 1000) == 1  # 24 rows: an epoch keeps 16 batches
    nothing = Expected(np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32))
    assert (
        taken(RunRows([*few.train, *[replace(few.train[0], expected=nothing)] * 900], []), 1000) == 1
    )  # of taught ones
    with pytest.raises(ValueError, match="has not been resolved"):
        _ = config.train.batch_rows


@pytest.mark.usefixtures("one_task_at_a_time")
def test_the_remedy_fits_and_keeps_the_rows_of_an_update_where_that_is_enough(folder: Path) -> None:
    config = run_config(folder, "small", train={"batch_size": 16})
    rows = run_rows(config)
    half = run_config(folder, "small", train={"batch_size": 8, "gradient_accumulation_steps": 2})
    room = sum(fitting.peak_bytes(one, rows, folder, PLENTY) for one in (config, half)) // 2
    remedy = fitting.find_remedy(config, rows, folder, room)
    assert remedy is not None
    assert remedy.settings == ("train.batch_size=8", "train.gradient_accumulation_steps=2")
    assert remedy.peak_bytes <= room


@pytest.mark.parametrize("max_tokens", [4, 70, 0])
def test_answering_is_predicted_from_few_layers(folder: Path, max_tokens: int) -> None:
    config = run_config(folder, lora={"layers": 6})
    draw = np.random.default_rng(0)
    prompts = [draw.integers(5, 250, int(size)).tolist() for size in draw.integers(90, 120, 12)]
    references = [[7, 8, 9]] * 12
    asked = Asked(RETENTION, prompts, max_tokens, references)
    model = load_base(config.model).model

    def ratio() -> float:
        phase = Slices(config, run_rows(config), folder, PLENTY).asking(asked)
        assert phase.how == "keys and values computed from shapes, the rest measured here on 8 layers"
        with probe.measured() as spent:
            if max_tokens:
                list(iter_answers(model, Mute(), prompts, max_tokens=max_tokens, references=references))
            else:
                list(iter_nats(model, prompts, references))
        return phase.working / spent.nbytes

    assert 0.95 < settled(ratio, 0.95, 1.1) < 1.1  # 0.98 to 1.02


def test_keeping_the_likeliest_tokens_is_part_of_answering(folder: Path) -> None:
    config = run_config(folder, "many words")
    draw = np.random.default_rng(0)
    prompts = [draw.integers(5, 250, int(size)).tolist() for size in draw.integers(10, 20, 64)]
    slices = Slices(config, run_rows(config), folder, PLENTY)
    model = load_base(config.model).model
    for likeliest in (32, 0):
        phase = slices.asking(Asked(REPLAY, prompts, 4, rows=64, likeliest=likeliest))
        with probe.measured() as spent:
            list(iter_answers(model, Mute(), prompts, max_tokens=4, batch_size=64, likeliest=likeliest))
        assert 0.95 < phase.working / spent.nbytes < 1.15


@pytest.mark.usefixtures("one_task_at_a_time")
def test_questions_that_take_more_than_the_steps_are_the_first_to_go(folder: Path) -> None:
    config = run_config(folder, "small", train={"batch_size": 1, "retention": "general-knowledge"})
    questions = Asked(RETENTION, [[5] * 500] * 32, 32)
    rows = replace(run_rows(config), asked=[questions])
    assert predict(Slices(config, rows, folder, PLENTY)).worst.name == "answering for train.retention"
    room = sum(fitting.peak_bytes(config, one, folder, PLENTY) for one in (rows, replace(rows, asked=[]))) // 2
    remedy = fitting.find_remedy(config, rows, folder, room)
    assert remedy is not None
    assert remedy.settings == ("train.retention=null",)
    assert remedy.peak_bytes <= room


def test_remedies_become_harder_one_after_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(folder, train={"batch_size": 4})
    rows = run_rows(config)
    tried: list[RunConfig] = []
    monkeypatch.setattr(fitting, "peak_bytes", lambda config, *_: tried.append(config) or PLENTY)
    assert fitting.find_remedy(config, rows, folder, 1000) is None
    assert [(one.train.batch_size, one.train.gradient_accumulation_steps) for one in tried[:2]] == [(2, 2), (1, 4)]
    assert {one.train.gradient_checkpointing for one in tried[2:]} == {True}
    assert [one.lora.layers for one in tried[2:6]] == ["all", 6, 3, 1]
    assert tried[-1].data.truncation == "drop"
    tried.clear()
    goes_on = run_config(folder, train={"batch_size": 4}, lora={"start_from": "elsewhere"})
    assert fitting.find_remedy(goes_on, rows, folder, 1000) is None
    assert {one.lora.layers for one in tried} == {"all"}  # those of the adapter that it starts from


def test_a_remedy_is_never_a_run_of_replay_rows_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(folder)
    rows = run_rows(config)
    nothing = Expected(np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32))
    short = Example(np.arange(2, dtype=np.int32), np.arange(2) > 0, "replay:1", None, expected=nothing)
    longest = max(len(row.tokens) for row in rows.train)
    alike = [row for row in rows.train if len(row.tokens) > longest / 2]
    tried: list[RunRows] = []
    monkeypatch.setattr(fitting, "peak_bytes", lambda _, rows, *__: tried.append(rows) or PLENTY)
    assert fitting.find_remedy(config, RunRows([*alike, short], []), folder, 1000) is None
    assert tried
    assert all(rows.taught for rows in tried)


def test_measuring_stops_before_it_takes_more_than_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "_AT_ONCE", 256)
    config = run_config(folder, "small")
    rows = run_rows(config)
    measured: list[int] = []
    step = probe.Probe.step
    monkeypatch.setattr(
        probe.Probe, "step", lambda self, batch, copies: measured.append(len(batch)) or step(self, batch, copies)
    )
    room = 20 * 2**20
    phase = Slices(config, rows, folder, room).step([longer(row, 256) for row in rows.train[:16]])
    assert measured[0] == 1
    assert max(measured) < 16
    assert phase.how.startswith("estimated")
    assert phase.working > room


def test_a_stretched_row_keeps_its_shares(folder: Path) -> None:
    row = Example(np.arange(10, dtype=np.int32), np.arange(10) >= 8, "row", None)
    assert longer(row, 20).tokens.tolist() == [place // 2 for place in range(20)]
    assert longer(row, 20).loss_mask.sum() == 4
    assert longer(row, 5).tokens.tolist() == [0, 2, 4, 6, 8]


def test_the_worst_batch_follows_from_what_positions_and_trained_ones_weigh() -> None:
    sizes = [(9, 8), (50, 1), (12, 6), (40, 7)]  # of rows: tokens, trained ones
    rows = [Example(np.full(size, size, np.int32), np.arange(size) >= size - own, "row", None) for size, own in sizes]
    schedule = Schedule(tuple(size - 1 for size, _ in sizes), 1, 1, 0, 4, 4)

    def worst(*weights: float, most: int = 100) -> int:
        (row,) = worst_batch(rows, schedule, Counting(True, most), weights)
        return len(row.tokens)

    assert worst(1.0, 0.0) == 50
    assert worst(0.0, 1.0) == 9
    assert worst(1.0, 4.0) == 40
    assert worst(0.0, 1.0, most=6) == 40  # no more logits are there at once: of equals the longest
    assert worst(0.0, 1.0, most=0) == 50


def test_phases_come_in_the_order_of_the_run(folder: Path) -> None:
    train = {"epochs": 2, "retention": str(folder / "train.jsonl")}
    data = {"valid_share": 0.2, "replay": 0.2}
    config = run_config(folder, "small", lora={"layers": 1}, train=train, data=data)
    phases = predict(Slices(config, run_rows(config), folder, PLENTY)).phases
    assert [phase.name for phase in phases] == [
        "loading the base",
        "answering for data.replay",
        "comparing the engine with the plain forward",
        "running the frozen layers",
        STEP,
        "a validation",
        "answering for train.retention",
    ]
    frozen, step, asking = phases[3], phases[4], phases[6]
    assert step.weights < frozen.weights == asking.weights  # the lower layers leave, and come back


def test_short_rows_that_pass_the_frozen_layers_together_are_measured_together(folder: Path) -> None:
    """Sixteen were measured, whatever their length, where up to 2,048 positions go through at once."""

    def working(count: int) -> int:
        lines = [json.dumps({"question": f"{n + 100} word word word word", "answer": "yes"}) for n in range(count)]
        (folder / "short.jsonl").write_text("\n".join(lines), encoding="utf-8")
        train = {"epochs": 2, "engine": ["frozen_layers"]}
        config = run_config(folder, "small", lora={"layers": 1}, train=train, data={"train": "short.jsonl"})
        phases = predict(Slices(config, run_rows(config), folder, PLENTY)).phases
        return next(phase.working for phase in phases if phase.name == "running the frozen layers")

    assert settled(lambda: working(64) / working(16), 2.3, 4.0) > 2.3  # 2.64; it was 1.79


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_choosing_what_a_reads_takes_no_more_than_is_said(folder: Path, family: str) -> None:
    config = run_config(folder, family, lora={"init": "contrastive"}, data={"replay": 0.5})
    taught = random_rows(200, shared=10, most=60)
    answered = stand_in_rows(config, [row.tokens.tolist()[:40] for row in random_rows(400, seed=1, most=60)], taught)
    said = find_contrast(config, RunRows([*taught, *answered], []))
    model = load_base(config.model).model
    inject_lora(model, config.lora, seed=0)
    mx.eval(model.parameters())
    with probe.measured() as spent:
        *_, found = contrast_adapters(model, [*taught, *answered], 0)
    assert len(found) == 12 * 7
    assert said / 6 < spent.nbytes < said


def test_choosing_what_a_reads_is_a_phase_of_the_run(folder: Path) -> None:
    config = run_config(folder, lora={"init": "contrastive"}, data={"replay": 0.5})
    rows = run_rows(config)
    phases = {phase.name: phase for phase in predict(Slices(config, rows, folder, PLENTY)).phases}
    assert phases["choosing what A reads"].working == find_contrast(config, rows) > 2**20
    random = run_config(folder, data={"replay": 0.5})
    assert find_contrast(random, rows) == 0
    assert find_bounds(config, rows).working >= find_contrast(config, rows)
    assert "choosing what A reads" not in {phase.name for phase in predict(Slices(random, rows, folder, PLENTY)).phases}
