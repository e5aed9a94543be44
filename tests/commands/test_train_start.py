"""`lora.start_from`: a run that goes on from another run's adapter, and what it refuses to start from."""

import hashlib
import json
import re
import shutil
from dataclasses import replace

import mlx_lora  # noqa: F401  (loads OpenBLAS before MLX)

import mlx.core as mx  # isort: skip
import numpy as np
import pytest

from mlx_lora.commands.train import run_train
from mlx_lora.commands.trainloop import validation_mark
from mlx_lora.commands.trainstart import choose_a
from mlx_lora.config import RunConfig
from mlx_lora.dataset.examples import Expected
from mlx_lora.errors import AdapterError, ConfigError, TrainingError
from mlx_lora.files import sha256_file
from mlx_lora.lora.inject import inject_lora, iter_lora_modules
from mlx_lora.model.load import load_base
from mlx_lora.training.checkpoint import Progress
from mlx_lora.training.distributed import Group
from mlx_lora.training.session import Session
from mlx_lora.training.validation import Validation, better_than_start
from tests.commands.test_train import events, interrupted_after
from tests.tiny import save_tiny_folder
from tests.training.rows import random_rows


@pytest.fixture
def first(run_file, tmp_path):
    """The folder of a run that others can start from."""
    folder = tmp_path / "first"
    assert run_train(run_file(output_dir=str(folder))) == 0
    return folder


def weights(folder):
    return (folder / "adapters.safetensors").read_bytes()


def same_weights(folder, checkpoint):
    """Whether an adapter is that of a checkpoint, which has more digits."""
    own, other = (mx.load(str(one / "adapters.safetensors")) for one in (folder, checkpoint))
    return own.keys() == other.keys() and all(
        mx.array_equal(own[name], other[name].astype(own[name].dtype)) for name in own
    )


def test_a_run_begins_where_the_other_ended_and_says_so_in_its_adapter(first, run_file, tmp_path, capsys):
    path = run_file(lora={"start_from": str(first), "dropout": 0.1})
    assert run_train(path) == 0
    assert f"starts from {first}\n" in capsys.readouterr().err
    before, after = (events(folder, "validation") for folder in (first, tmp_path / "run"))
    assert after[0]["loss"] == pytest.approx(before[-1]["loss"], rel=1e-6)  # rounding: dropout takes another way
    assert after[-1]["loss"] < before[-1]["loss"]
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["lora_parameters"]["dropout"] == 0.1
    assert config["mlx_lora"]["started_from"] == {
        "name": "first",
        "weights_sha256": sha256_file(first / "adapters.safetensors"),
    }
    assert "started_from" not in json.loads((first / "adapter_config.json").read_text())["mlx_lora"]


def test_other_prompts_than_it_was_trained_with_are_said(first, run_file, tmp_path, capsys):
    path = run_file(lora={"start_from": str(first)}, data={"system_prompt": "Be brief."})
    assert run_train(path) == 0
    assert f"warning: system_prompt was another where {first} was trained\n" in capsys.readouterr().err
    assert run_train(run_file(lora={"start_from": str(first)}), overwrite=True) == 0
    assert "was another" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("best", "keeps", "loss", "said"),
    [
        (True, True, 0.1, "best so far, kept"),
        (True, False, 0.1, "best so far"),
        (True, True, 0.3, "kept, though no better than at step 0"),
        (True, False, 0.3, ""),
        (False, True, 0.1, ""),
    ],
)
def test_what_is_said_of_a_validation_that_began_at_a_loss_of_two_tenths(best, keeps, loss, said):
    for right in ("", "00"):  # of a checkpoint that does not know them, and of one that had none
        began = Progress(base_loss=0.2, base_right=right)
        assert validation_mark(best, keeps, better_than_start(Validation(loss, (False,) * 8), began)) == said


@pytest.mark.parametrize(("final", "kept", "asked"), [("best", 3, "it too: .*00000009"), ("last", 9, "the best too: ")])
def test_a_run_leaves_the_adapter_of_its_best_validation_or_of_its_last_step(
    run_file, tmp_path, capsys, monkeypatch, final, kept, asked
):
    losses = iter([5.0, 0.5, 0.9, 0.7])  # before the first step, and after each of three epochs
    monkeypatch.setattr(Session, "validate", lambda self: Validation(next(losses), (False,) * len(self.valid_set)))
    path = run_file(train={"epochs": 3, "final_adapter": final, "keep_last": 3})
    capsys.readouterr()
    assert run_train(path, json_output=True) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert (summary["best_step"], summary["kept_step"], summary["steps"]) == (3, kept, 9)
    run = tmp_path / "run"
    assert json.loads((run / "adapter_config.json").read_text())["mlx_lora"]["step"] == kept
    assert same_weights(run, run / f"checkpoints/{kept:08d}")
    assert not same_weights(run, run / f"checkpoints/{12 - kept:08d}")
    assert re.search(f"not the best in validation; to ask {asked}", shown.err)


def test_a_run_that_only_makes_it_worse_says_so(first, run_file, tmp_path, capsys):
    path = run_file(lora={"start_from": str(first)}, optimizer={"learning_rate": 50.0})
    assert run_train(path) == 0
    losses = [event["loss"] for event in events(tmp_path / "run", "validation")]
    assert min(losses[1:]) > losses[0]
    assert f"warning: the validation loss never fell below {losses[0]:.4f}, where it began" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_without_a_learning_rate_it_ends_as_it_began(run_file, tmp_path, method, engine):
    settings = {"method": method, "layers": 1}
    assert run_train(run_file(lora=settings, output_dir=str(tmp_path / "first"))) == 0
    still = {"lora": {**settings, "start_from": str(tmp_path / "first")}, "optimizer": {"learning_rate": 0.0}}
    assert run_train(run_file(**still, train={"engine": engine})) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "first")


def test_a_resumed_run_that_started_from_an_adapter_ends_in_the_same_bits(first, run_file, tmp_path, monkeypatch):
    assert run_train(run_file(lora={"start_from": str(first)}, output_dir=str(tmp_path / "whole"))) == 0
    moved = shutil.copytree(first, tmp_path / "moved")  # its weights count, not where they lie
    path = run_file(lora={"start_from": str(first)})
    with monkeypatch.context() as patch:
        interrupted_after(4, patch)
        assert run_train(path) == 130
    assert run_train(path, [f"lora.start_from={moved}"], resume=True) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    with pytest.raises(TrainingError, match=r"started_from: was '.*', is None"):
        run_train(path, ["lora.start_from=null", "train.epochs=4"], resume=True, force=True)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"rank": 2, "alpha": 4}, "lora.rank 4, in this run 2$"),
        ({"alpha": 4}, r"effective scale 2.0, in this run 1.0$"),
        ({"use_rslora": True}, r"effective scale 2.0, in this run 4.0$"),
        ({"method": "dora", "rank": 8}, r"lora.method lora, in this run dora, lora.rank 4, in this run 8, effective"),
        ({"layers": 1}, "adapts 14 modules, this run 7, and they are not the same$"),
        ({"target_modules": ["q_proj"]}, "adapts 14 modules, this run 2, and they are not the same$"),
    ],
)
def test_an_adapter_of_another_shape_is_refused(first, run_file, tmp_path, settings, fact):
    with pytest.raises(AdapterError, match=fact) as refused:
        run_train(run_file(lora={"start_from": str(first), **settings}))
    assert refused.value.message.startswith(f"lora.start_from: {first}: ")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.safetensors"))


def test_an_adapter_of_another_base_is_refused_before_the_base_answers_prompts(first, run_file, tmp_path, capsys):
    other = save_tiny_folder(tmp_path / "other", seed=9)
    settings = {"lora": {"start_from": str(first)}, "data": {"replay": 0.4}}
    with pytest.raises(AdapterError, match=r"first: trained on .*, the base here is .*: other config and weights$"):
        run_train(run_file(**settings, model=str(other or tmp_path / "other")))
    assert "replay" not in capsys.readouterr().err


def test_a_run_cannot_start_from_the_folder_that_it_writes(first, run_file):
    before = weights(first)
    with pytest.raises(ConfigError, match="first is the folder that this run writes"):
        run_train(run_file(lora={"start_from": str(first)}, output_dir=str(first)), overwrite=True)
    assert weights(first) == before


CONTRASTIVE = {"lora": {"init": "contrastive"}, "data": {"replay": 0.4}}


def test_contrastive_chooses_an_a_that_stays_and_trains_b_alone(run_file, tmp_path, capsys):
    path = run_file(**CONTRASTIVE, train={"epochs": 1, "save_every": 1, "keep_last": 3})
    assert run_train(path) == 0
    said = capsys.readouterr().err
    told = re.search(
        r"lora\.init: contrastive: A reads the taught rows (\d+\.\d) times as strongly as the base's own answers "
        r"\(median of 14 modules; random: 1\.0\)\n",
        said,
    )
    assert told is not None
    assert float(told[1]) > 1.2
    assert run_train(run_file(output_dir=str(tmp_path / "random"), train={"epochs": 1})) == 0
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    first, *_, last = (mx.load(str(folder / "adapters.safetensors")) for folder in checkpoints)
    random = mx.load(str(tmp_path / "random" / "adapters.safetensors"))
    assert first.keys() == last.keys() == random.keys()
    for name in first:
        assert mx.array_equal(first[name], last[name]) == name.endswith("lora_a"), name
        assert not mx.array_equal(first[name], random[name])
    moments = mx.load(str(checkpoints[-1] / "optimizer.safetensors"))
    assert {name.partition("|")[0].rpartition(".")[2] for name in moments if "|" in name} == {"lora_b"}


def test_a_run_of_a_version_without_lora_init_is_resumed(run_file, tmp_path, monkeypatch):
    path = run_file()
    with monkeypatch.context() as patch:
        interrupted_after(3, patch)
        assert run_train(path) == 130
    state = next((tmp_path / "run" / "checkpoints").iterdir()) / "state.json"
    told = json.loads(state.read_text())
    del told["sha256"]
    assert told["progress"]["fingerprint"]["settings"]["lora"].pop("init") == "random"
    digest = sha256_text(json.dumps(told, sort_keys=True))
    state.write_text(json.dumps({"sha256": digest, **told}))
    with pytest.raises(TrainingError, match=r"settings\.lora\.init: was None, is 'contrastive'"):
        run_train(path, ["lora.init=contrastive", "data.replay=0.4"], resume=True)
    assert run_train(path, resume=True) == 0


def test_a_contrastive_run_of_another_rank_or_of_other_modules_is_not_resumed(run_file, monkeypatch):
    path = run_file(**CONTRASTIVE)
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        assert run_train(path) == 130
    for changed in ("lora.rank=2", "lora.target_modules=attention", "lora.layers=1", "lora.init=random"):
        with pytest.raises(TrainingError, match=re.escape(f"settings.{changed.partition('=')[0]}: was")):
            run_train(path, [changed], resume=True)
    assert run_train(path, resume=True) == 0


def sha256_text(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_take_the_a_of_the_one_that_leads(base, monkeypatch, rank):  # another host rounds otherwise
    loaded, rows = load_base(str(base)), random_rows(6)
    answers = [
        replace(row, expected=Expected(*np.zeros((2, row.loss_mask.sum(), 1)))) for row in random_rows(6, seed=1)
    ]
    config = RunConfig.model_validate(
        {
            "model": "m",
            "data": {"train": "t", "replay": 0.5},
            "lora": {"rank": 2, "layers": 1, "init": "contrastive"},
            "train": {"steps": 1},
            "output_dir": "o",
        }
    )
    inject_lora(loaded.model, config.lora, seed=0)
    given, waited = {}, []

    def summed(_, arrays):
        given.update(arrays)
        return {path: array + 1 for path, array in arrays.items()}

    monkeypatch.setattr(Group, "same", lambda *_, patient: waited.append(patient))
    monkeypatch.setattr(Group, "sum_arrays", summed)
    choose_a(loaded, [*rows, *answers], config, Group(rank, 2), None)
    assert waited == [True]
    assert len(given) == 7
    for path, adapter in iter_lora_modules(loaded.model):
        assert bool(given[path].any()) == (rank == 0)
        assert mx.array_equal(adapter.lora_a, given[path] + 1)
