"""Every setting of the run file changes what a run does: real runs of a tiny model, each against the same plain one.

A setting that nothing reads is a promise broken (mlx-lm's `--clear-cache-threshold`, for one): a field of the schema
without an entry in EFFECTS fails here.
"""

import gc
import io
import json
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx_lora  # isort: skip  # before mlx.core: it loads OpenBLAS
import mlx.core as mx
import pytest

from mlx_lora.commands.train import run_train
from mlx_lora.config import ENGINE_PARTS
from mlx_lora.dataset.splits import load_splits
from mlx_lora.errors import DataError, TrainingError
from mlx_lora.runfile import load_config
from mlx_lora.runfile.fields import all_settings
from mlx_lora.runfile.writer import render_value
from tests.tiny import CHATML, save_tiny_folder

assert mlx_lora
ROWS = 12
SWITCHED = "{{ 'SHOUT' if loud else '' }}" + CHATML


@dataclass
class Run:
    """What a finished run left behind."""

    folder: Path
    said: str  # its stderr

    @cached_property
    def adapter(self) -> dict[str, Any]:
        return json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))

    @cached_property
    def weights(self) -> dict[str, mx.array]:
        return mx.load(str(self.folder / "adapters.safetensors"))

    def column(self, name: str, kind: str = "step") -> list[Any]:
        """One field of the run's metrics: of its steps, or of its validations."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [event[name] for event in map(json.loads, lines) if event["event"] == kind]

    def checkpoints(self) -> list[int]:
        return sorted(int(path.name) for path in (self.folder / "checkpoints").iterdir())

    def same_weights(self, other: "Run") -> bool:
        return self.weights.keys() == other.weights.keys() and all(
            bool(mx.array_equal(array, other.weights[name])) for name, array in self.weights.items()
        )


class Bench:
    """A folder with tiny models, some rows and a run file; `run` trains with some settings changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, Run] = {}

    def overrides(self, values: dict[str, Any]) -> list[str]:
        return [f"{path}={render_value(value)}" for path, value in values.items()]

    def run(self, values: dict[str, Any], *, again: bool = False) -> Run:
        """The run with these settings changed; made once for equal values, unless `again`."""
        key = repr(sorted(values.items()))
        if again or key not in self.runs:
            changed = {"output_dir": str(self.folder / f"out-{len(self.runs)}-{again}"), **values}
            mx.reset_peak_memory()
            with redirect_stderr(io.StringIO()) as said:
                assert run_train(self.folder / "run.yaml", self.overrides(changed)) == 0
            self.runs[key] = Run(Path(changed["output_dir"]), said.getvalue())
        return self.runs[key]

    @property
    def plain(self) -> Run:
        return self.run({})

    def splits(self, values: dict[str, Any]) -> tuple[int, int, int]:
        """Rows of train, valid and test."""
        config = load_config(self.folder / "run.yaml", self.overrides(values))
        found = load_splits(config.data, config.train.seed)
        return len(found.train), len(found.valid), len(found.test)


def write_rows(path: Path, word: str, rows: int) -> None:
    lines = [{"question": f"What is {word} {n}?", "answer": word[0] * (1 + n % 4)} for n in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("every-field")
    save_tiny_folder(folder / "model")
    save_tiny_folder(folder / "other", seed=1)
    for name, word, rows in (
        ("train", "ant", ROWS),
        ("train2", "bee", ROWS),
        ("valid", "cat", 3),
        ("valid2", "dog", 3),
    ):
        write_rows(folder / f"{name}.jsonl", word, rows)
    (folder / "switched.jinja").write_text(SWITCHED, encoding="utf-8")
    (folder / "run.yaml").write_text(
        f"model: {folder}/model\n"
        f"data: {{train: {folder}/train.jsonl, valid: {folder}/valid.jsonl}}\n"
        "lora: {rank: 4, alpha: 8}\n"
        "train: {steps: 4, batch_size: 4, engine: plain, retention: null}\n"
        "optimizer: {warmup_ratio: 0.25}\n"
        f"output_dir: {folder}/out\n",
        encoding="utf-8",
    )
    return Bench(folder)


def test_the_same_settings_give_the_same_run_bit_for_bit(bench: Bench) -> None:
    once, again = bench.run({}), bench.run({}, again=True)
    assert once is not again
    assert again.same_weights(once)
    assert again.column("loss") == once.column("loss")
    assert len(again.column("loss")) == 4


Effect = Callable[[Bench, pytest.MonkeyPatch], None]
EFFECTS: dict[str, Effect] = {}


def effect_of(path: str) -> Callable[[Effect], Effect]:
    def enter(effect: Effect) -> Effect:
        assert EFFECTS.setdefault(path, effect) is effect, f"{path} has two entries"
        return effect

    return enter


def test_every_setting_has_its_effect_in_the_table() -> None:
    assert sorted(EFFECTS) == sorted(all_settings())


@pytest.mark.parametrize("path", sorted(all_settings()))
def test_a_setting_has_its_effect(path: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert path in EFFECTS, f"write an entry for {path}"
    EFFECTS[path](bench, monkeypatch)


@effect_of("model")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    other = bench.run({"model": str(bench.folder / "other")})
    assert other.adapter["mlx_lora"]["identity"]["name"] == "other"
    assert other.column("loss")[0] != bench.plain.column("loss")[0]


@effect_of("revision")
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def fetch(name: str, *, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return str(bench.folder / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    run = bench.run({"model": "somebody/some-model", "revision": "v2"})
    assert set(asked) == {("somebody/some-model", "v2")}
    assert run.adapter["mlx_lora"]["revision"] == "v2"


@effect_of("compute")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    half = bench.run({"compute": "bfloat16"})
    assert half.said.startswith("model  bfloat16, stored as float32 (")
    assert half.column("loss")[0] == pytest.approx(bench.plain.column("loss")[0], rel=0.02)
    assert half.column("loss")[0] != bench.plain.column("loss")[0]


@effect_of("data.train")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    other = bench.run({"data.train": str(bench.folder / "train2.jsonl")})
    assert other.column("loss")[0] != bench.plain.column("loss")[0]


@effect_of("data.valid")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    other = bench.run({"data.valid": str(bench.folder / "valid2.jsonl")})
    assert other.column("loss") == bench.plain.column("loss")
    assert other.column("loss", "validation")[0] != bench.plain.column("loss", "validation")[0]


@effect_of("data.test")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert bench.splits({}) == (ROWS, 3, 0)
    assert bench.splits({"data.test": str(bench.folder / "train2.jsonl")}) == (ROWS, 3, ROWS)


@effect_of("data.valid_share")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert [bench.splits({"data.valid": None, "data.valid_share": share})[:2] for share in (0.0, 0.25, 0.5)] == [
        (12, 0),
        (9, 3),
        (6, 6),
    ]


def tokens_of_an_epoch(run: Run) -> int:
    """Input tokens of the first three steps, which are one pass over the rows."""
    assert run.column("epoch")[2] == 1.0
    return sum(run.column("tokens")[:3])


@effect_of("data.system_prompt")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    told = bench.run({"data.system_prompt": "Be brief."})
    added = 2 + len("system\nBe brief.\n")  # two marks, and one token a byte
    assert tokens_of_an_epoch(told) == tokens_of_an_epoch(bench.plain) + ROWS * added
    assert sum(told.column("targets")[:3]) == sum(bench.plain.column("targets")[:3])
    assert told.adapter["mlx_lora"]["system_prompt"] == "Be brief."


@effect_of("data.chat_template")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    (bench.folder / "loud.jinja").write_text("LOUD" + CHATML, encoding="utf-8")
    loud = bench.run({"data.chat_template": str(bench.folder / "loud.jinja")})
    assert tokens_of_an_epoch(loud) == tokens_of_an_epoch(bench.plain) + ROWS * len("LOUD")
    assert loud.adapter["mlx_lora"]["chat_template"] == "LOUD" + CHATML


@effect_of("data.chat_template_args")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    switched = {"data.chat_template": str(bench.folder / "switched.jinja")}
    quiet, loud = bench.run(switched), bench.run({**switched, "data.chat_template_args": {"loud": True}})
    assert quiet.column("tokens") == bench.plain.column("tokens")
    assert tokens_of_an_epoch(loud) == tokens_of_an_epoch(quiet) + ROWS * len("SHOUT")
    assert loud.adapter["mlx_lora"]["chat_template_args"] == {"loud": True}


@effect_of("data.train_on")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    every = bench.run({"data.train_on": "all"})
    assert every.column("targets") == every.column("tokens")
    assert max(bench.plain.column("targets")) < min(bench.plain.column("tokens"))


@effect_of("data.max_seq_length")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"tokens, but data\.max_seq_length is 30"):
        bench.run({"data.max_seq_length": 30})


@effect_of("data.truncation")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    values = {"data.max_seq_length": 37, "train.steps": 3}
    shortened = bench.run({**values, "data.truncation": "prompt"})
    assert sum(shortened.column("targets")) == sum(bench.plain.column("targets")[:3])
    assert tokens_of_an_epoch(shortened) < tokens_of_an_epoch(bench.plain)
    dropped = bench.run({**values, "data.truncation": "drop", "train.batch_size": ROWS, "train.steps": 1})
    assert 0 < dropped.column("targets")[0] < sum(shortened.column("targets"))


@effect_of("data.replay")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    rehearsed = bench.run({"data.replay": 0.25})
    assert "replay: 4 rows join each epoch's 12 (25% of all), drawn from 6 " in rehearsed.said  # four steps of three
    assert all(more > few for more, few in zip(rehearsed.column("tokens"), bench.plain.column("tokens"), strict=True))
    assert rehearsed.column("loss", "validation")[0] == bench.plain.column("loss", "validation")[0]


@effect_of("data.replay_prompts")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    (bench.folder / "prompts.txt").write_text("Hm?\n", encoding="utf-8")
    rehearsed = bench.run({"data.replay": 0.25, "data.replay_prompts": str(bench.folder / "prompts.txt")})
    assert "drawn from 1 that the base answered" in rehearsed.said


@effect_of("lora.method")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    dora = bench.run({"lora.method": "dora"})
    assert dora.adapter["fine_tune_type"] == "dora"
    assert {name.rpartition(".")[2] for name in dora.weights} == {"lora_a", "lora_b", "m"}


@effect_of("lora.rank")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    for run, rank in ((bench.plain, 4), (bench.run({"lora.rank": 2}), 2)):
        assert run.adapter["lora_parameters"]["rank"] == rank
        assert {array.shape[-1] for name, array in run.weights.items() if name.endswith("lora_a")} == {rank}


def assert_scale(bench: Bench, values: dict[str, Any], scale: float) -> None:
    run = bench.run(values)
    assert run.adapter["lora_parameters"]["scale"] == scale
    assert run.column("loss")[0] == bench.plain.column("loss")[0]  # B is zero: the scale is not seen yet
    assert run.column("loss")[1] != bench.plain.column("loss")[1]


@effect_of("lora.alpha")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert bench.plain.adapter["lora_parameters"]["scale"] == 8 / 4
    assert_scale(bench, {"lora.alpha": 20.0}, 20 / 4)


@effect_of("lora.use_rslora")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert_scale(bench, {"lora.use_rslora": True}, 8 / 4**0.5)


@effect_of("lora.init")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    chosen, random = bench.run({"lora.init": "contrastive", "data.replay": 0.25}), bench.run({"data.replay": 0.25})
    assert "lora.init: contrastive: A reads the taught rows " in chosen.said
    assert chosen.column("loss")[0] == pytest.approx(random.column("loss")[0], rel=1e-6)  # B is zero: not seen yet
    assert chosen.column("loss")[1:] != random.column("loss")[1:]


@effect_of("lora.start_from")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    start = bench.plain
    run = bench.run({"lora.start_from": str(start.folder)})
    assert run.column("loss", "validation")[0] == min(start.column("loss", "validation")[1:])  # kept
    assert f"starts from {start.folder}\n" in run.said


@effect_of("lora.dropout")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    run = bench.run({"lora.dropout": 0.5})
    assert run.adapter["lora_parameters"]["dropout"] == 0.5
    assert run.column("loss")[0] == bench.plain.column("loss")[0]  # B is zero: what is dropped is not seen yet
    assert run.column("loss")[1] != bench.plain.column("loss")[1]


def modules(run: Run) -> set[str]:
    return {name.rpartition(".")[0].rpartition(".")[2] for name in run.weights}


@effect_of("lora.target_modules")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert modules(bench.plain) == attention | mlp
    assert modules(bench.run({"lora.target_modules": "attention"})) == attention
    assert modules(bench.run({"lora.target_modules": "mlp"})) == mlp
    assert modules(bench.run({"lora.target_modules": ["q_proj", "up_proj"]})) == {"q_proj", "up_proj"}


@effect_of("lora.layers")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    run = bench.run({"lora.layers": 2})
    assert {name.split(".")[2] for name in bench.plain.weights} == {"0", "1", "2", "3"}
    assert {name.split(".")[2] for name in run.weights} == {"2", "3"}
    assert run.adapter["num_layers"] == 2


@effect_of("lora.save_dtype")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    for run, dtype in ((bench.plain, mx.float32), (bench.run({"lora.save_dtype": "bfloat16"}), mx.bfloat16)):
        assert {array.dtype for array in run.weights.values()} == {dtype}


@effect_of("train.epochs")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert bench.run({"train.steps": None, "train.epochs": 2}).column("step") == [1, 2, 3, 4, 5, 6]


@effect_of("train.steps")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert bench.run({"train.steps": 2}).column("step") == [1, 2]


@effect_of("train.batch_size")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert bench.run({"train.batch_size": 6}).column("epoch") == [0.5, 1.0, 1.5, 2.0]
    assert bench.plain.column("epoch") == pytest.approx([1 / 3, 2 / 3, 1.0, 4 / 3])


@effect_of("train.group_by_prefix")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    both = "".join((bench.folder / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("train", "train2"))
    (bench.folder / "both.jsonl").write_text(both, encoding="utf-8")
    values = {"data.train": str(bench.folder / "both.jsonl"), "train.steps": 6}  # one epoch
    grouped = bench.run({**values, "train.group_by_prefix": True})
    mixed = bench.run({**values, "train.group_by_prefix": False})
    assert sum(grouped.column("tokens")) == sum(mixed.column("tokens"))
    assert grouped.column("loss") != mixed.column("loss")


@effect_of("train.gradient_accumulation_steps")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    run = bench.run({"train.gradient_accumulation_steps": 3})
    assert run.column("epoch") == [1.0, 2.0, 3.0, 4.0]
    assert run.column("tokens")[0] == sum(bench.plain.column("tokens")[:3])


@effect_of("train.gradient_checkpointing")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"text": "long " * 3 + str(number)}) + "\n" for number in range(96)]
    (bench.folder / "long.jsonl").write_text("".join(lines), encoding="utf-8")
    values = {
        "data.train": str(bench.folder / "long.jsonl"),
        "data.valid_share": 0.0,
        "data.valid": None,
        "train.steps": 2,
        "train.batch_size": 96,
    }
    gc.collect()  # what earlier runs left would count in both peaks
    kept = bench.run(values)
    gc.collect()
    recomputed = bench.run({**values, "train.gradient_checkpointing": True})
    assert recomputed.column("loss") == pytest.approx(kept.column("loss"), rel=1e-5)
    assert recomputed.column("peak_bytes")[-1] < 0.9 * kept.column("peak_bytes")[-1]


@effect_of("train.memory_limit_gb")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"does not fit: .* \(train\.memory_limit_gb\)"):
        bench.run({"train.memory_limit_gb": 0.0001})


@effect_of("train.engine")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    for part in ENGINE_PARTS:
        run = bench.run({"train.engine": [part], "train.epochs": 2, "train.steps": None, "lora.layers": 2})
        assert re.search(rf"^  (on |off) {part} ", run.said, re.MULTILINE), f"{part}: not a word about it"
    assert not any(part in bench.plain.said for part in ENGINE_PARTS)
    every = bench.run({"train.engine": "auto"})
    assert "  on  supervised_positions " in every.said
    assert every.column("loss") == pytest.approx(bench.plain.column("loss"), rel=1e-4)


@effect_of("train.eval_every")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert bench.plain.column("step", "validation") == [0, 3, 4]
    assert bench.run({"train.eval_every": 2}).column("step", "validation") == [0, 2, 4]


@effect_of("train.save_every")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert bench.plain.checkpoints() == [3, 4]
    assert bench.run({"train.save_every": 2}).checkpoints() == [2, 4]


@effect_of("train.keep_last")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert bench.run({"train.save_every": 1}).checkpoints() == [3, 4]
    assert bench.run({"train.save_every": 1, "train.keep_last": 3}).checkpoints() == [2, 3, 4]


@effect_of("train.final_adapter")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    # A learning rate of zero never improves on the first validation.
    values = {"optimizer.learning_rate": 0.0, "train.eval_every": 1}
    for final, step in (("best", 1), ("last", 4)):
        config = (bench.run({**values, "train.final_adapter": final}).folder / "adapter_config.json").read_text()
        assert json.loads(config)["mlx_lora"]["step"] == step


@effect_of("train.early_stopping_patience")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    # A learning rate of zero never improves on the first validation.
    values = {"optimizer.learning_rate": 0.0, "train.eval_every": 1, "train.steps": 9}
    assert len(bench.run(values).column("step")) == 9
    assert bench.run({**values, "train.early_stopping_patience": 2}).column("step") == [1, 2, 3]


@effect_of("train.retention")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    watched = bench.run({"train.retention": str(bench.folder / "train2.jsonl")})
    assert watched.same_weights(bench.plain)
    assert watched.column("questions", "retention") == [ROWS]
    assert bench.plain.column("questions", "retention") == []


@effect_of("train.seed")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert not bench.run({"train.seed": 1}).same_weights(bench.plain)


@effect_of("optimizer.name")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    runs = [bench.run({"optimizer.name": name}) for name in ("adamw", "adam", "sgd", "adafactor", "muon", "lion")]
    # Without weight decay adamw and adam are one rule: the effect of adamw is that of weight_decay.
    assert runs[0].same_weights(runs[1])
    assert len({tuple(run.column("loss")) for run in runs}) == 5


@effect_of("optimizer.learning_rate")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    run = bench.run({"optimizer.learning_rate": 2e-3})
    assert run.column("learning_rate") == [2 * rate for rate in bench.plain.column("learning_rate")]
    assert not run.same_weights(bench.plain)


def rates(bench: Bench, values: dict[str, Any]) -> list[float]:
    return bench.run({"optimizer.learning_rate": 1.0, "optimizer.warmup_ratio": 0.0, **values}).column("learning_rate")


@effect_of("optimizer.schedule")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    assert rates(bench, {"optimizer.schedule": "constant"}) == [1.0, 1.0, 1.0, 1.0]
    assert rates(bench, {"optimizer.schedule": "linear"}) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(bench, {"optimizer.schedule": "wsd"}) == pytest.approx([1.0, 1.0, 1.0, 0.625])
    assert rates(bench, {}) == pytest.approx([1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5])


@effect_of("optimizer.warmup_ratio")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    values = {"optimizer.schedule": "constant", "optimizer.warmup_ratio": 0.5}
    assert rates(bench, values) == pytest.approx([0.5, 1.0, 1.0, 1.0])


@effect_of("optimizer.final_ratio")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    values = {"optimizer.schedule": "linear", "optimizer.final_ratio": 0.2}
    assert rates(bench, values) == pytest.approx([1.0, 0.8, 0.6, 0.4])


@effect_of("optimizer.weight_decay")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    for name in ("adamw", "muon", "lion", "sgd"):
        without = bench.run({"optimizer.name": name})
        assert not bench.run({"optimizer.name": name, "optimizer.weight_decay": 0.5}).same_weights(without), name


@effect_of("optimizer.momentum")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    for name in ("sgd", "muon"):
        most = bench.run({"optimizer.name": name})
        assert not bench.run({"optimizer.name": name, "optimizer.momentum": 0.1}).same_weights(most), name


@effect_of("optimizer.max_grad_norm")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    values = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "train.steps": 1}
    norms = []
    for limit in (None, 0.5, 0.25):
        run = bench.run({**values, "optimizer.max_grad_norm": limit})
        # A plain step from B = 0 moves B by learning rate x gradient.
        moved = sum(mx.square(array).sum() for name, array in run.weights.items() if name.endswith("lora_b"))
        norms.append(float(mx.sqrt(moved).item()) / run.column("learning_rate")[0])
    assert norms == pytest.approx([bench.plain.column("gradient_norm")[0], 0.5, 0.25], rel=1e-3)


@effect_of("output_dir")
def _(bench: Bench, _: pytest.MonkeyPatch) -> None:
    folder = bench.folder / "elsewhere" / "deep"
    assert bench.run({"output_dir": str(folder)}).same_weights(bench.plain)
    assert {path.name for path in folder.iterdir()} == {
        "adapters.safetensors",
        "adapter_config.json",
        "checkpoints",
        "metrics.jsonl",
        "run.yaml",
    }
