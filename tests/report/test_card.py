"""The model card: what it tells of a run, and what the Hub can read of it."""

import json
from pathlib import Path

import pytest
import yaml

from mlx_lora.report.asking import eval_command
from mlx_lora.report.card import adapter_card, fused_card
from mlx_lora.report.facts import notes
from mlx_lora.report.headline import forgetting_headline
from mlx_lora.report.runs import read_run
from tests.report.run_folders import result, whole_run, write_run


@pytest.fixture
def run(tmp_path):
    return read_run(write_run(tmp_path / "one", whole_run(), results=[result()]))


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_front_matter_names_base_and_licence_as_the_hub_reads_them(run):
    card = adapter_card(run, name="anna/one", licence="apache-2.0")
    assert front_matter(card) == {
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["mlx", "mlx-lora", "lora", "adapter"],
    }, "tiny is no name on the Hub"
    fused = fused_card(
        [run], [1.0], model="org/model", licence=None, layers="2 in 8-bit", prompts="rows", table=(["a"], [["b"]])
    )
    assert front_matter(fused)["base_model"] == "org/model"
    assert "license" not in front_matter(fused)


def test_scores_data_and_run_file_are_in_it(run):
    card = adapter_card(run, name="anna/one")
    assert "| data-test (5) | exact match | 3 of 5, 60 % (" in card
    assert "| train | data/train.jsonl | 6 | 6 | 60 | 12 |" in card
    assert "```yaml\nmodel: tiny\n" in card
    assert "mlx-lora pull anna/one -o adapters/one" in card


def test_a_run_without_scores_says_so_and_a_bar_in_a_cell_breaks_no_table(tmp_path):
    run = read_run(write_run(tmp_path / "two", whole_run()))
    assert "nobody knows yet what it learned" in adapter_card(run, name="anna/two")
    card = fused_card([run], [1.0], model="m", licence=None, layers="", prompts="", table=(["a|b"], [["c|d"]]))
    assert "| a\\|b |\n| --- |\n| c\\|d |" in card


def test_a_base_in_a_folder_is_not_called_a_model_on_the_hub(tmp_path, monkeypatch):
    """models/base became `base_model: models/base`, a link to the Hub, and a command that fetches it from there."""
    start = {**whole_run()[0], "model": "models/base", "identity": {"name": "base", "revision": None}}
    run = read_run(write_run(tmp_path / "one", [start]))
    card = adapter_card(run, name="anna/one")
    assert "base_model" not in front_matter(card)
    assert "huggingface.co" not in card
    assert "mlx_lm.generate" not in card
    assert "adapter for `models/base`" in card
    hub = {**start, "identity": {"name": "models/base", "revision": "0123abcd"}}
    card = adapter_card(read_run(write_run(tmp_path / "two", [hub])), name="anna/two")
    assert front_matter(card)["base_model"] == "models/base"
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = fused_card([run], [1.0], model="models/base", licence=None, layers="", prompts="", table=(["a"], [["b"]]))
    assert "base_model" not in front_matter(card)
    assert "huggingface.co" not in card


def test_commands_can_be_typed_whatever_the_run_is_called(tmp_path, monkeypatch):
    """A folder with a blank became two arguments, one with a semicolon two commands."""
    start = {**whole_run()[0], "model": "org/model", "identity": {"name": "org/model", "revision": "0123abcd"}}
    folder = write_run(tmp_path / "my cup; rm x", [start, *whole_run()[1:-3]])
    card = adapter_card(read_run(folder), name="anna/cup")
    assert "    mlx-lora pull anna/cup -o 'adapters/my cup; rm x'\n    mlx-lora chat 'my cup; rm x'\n" in card
    assert "    mlx_lm.generate --model org/model --adapter-path 'adapters/my cup; rm x' --prompt …" in card
    monkeypatch.chdir(tmp_path)
    for place, typed in (("my cup; rm x", "'my cup; rm x'"), (str(folder), f"'…/{tmp_path.name}/my cup; rm x'")):
        run = read_run(Path(place))
        assert run.typed == typed
        assert eval_command(run) == f"mlx-lora eval {typed} --base"
        assert forgetting_headline(run).command == f"mlx-lora eval {typed} --base --data general-knowledge"
        assert f"mlx-lora train {typed}/run.yaml --resume" in [command for _, command in notes(run)]
    plain = write_run(tmp_path / "one", [])
    assert read_run(plain).typed == f"…/{tmp_path.name}/one", "the mark of a cut path asks for no quotes"


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            {"merged_from": {"method": "svd", "adapters": [{"name": "a", "weight": 0.7}, {"name": "b", "weight": -1}]}},
            "Merged from 0.7 · a + -1 · b (svd).",
        ),
        ({"merged_from": {"method": "svd", "adapters": [{"name": "a"}]}}, "Merged from nan · a (svd)."),
        ({"merged_from": {"adapters": ["a", "b"]}}, "Merged from adapters that its file does not name."),
        ({"versions": ["mlx"]}, "| model | tiny |"),
    ],
)
def test_a_config_that_was_edited_has_a_card_all_the_same(tmp_path, facts, sentence):
    """`push` ended in a TypeError or an AttributeError."""
    folder = write_run(tmp_path / "one", [])
    config = {"fine_tune_type": "lora", "mlx_lora": {"model": "tiny", **facts}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert sentence in adapter_card(read_run(folder), name="anna/one")


def test_the_card_says_which_questions_were_trained(tmp_path):
    asked = result()
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"trained_on": True})})
    card = adapter_card(read_run(write_run(tmp_path / "one", results=[asked])), name="anna/one")
    told = "the base 2 of 5: learned. These are the rows that it was trained on: this shows memory, not learning."
    assert told in card


def test_an_answer_that_a_sign_of_damage_quotes_is_not_in_the_card(tmp_path):
    asked = result()
    sentence = 'the adapter broke the model (5 of 5 answers are one and the same: "the "secret" is 42")'
    asked = asked.model_copy(update={"verdict": asked.verdict.model_copy(update={"sentence": sentence})})
    card = adapter_card(read_run(write_run(tmp_path / "one", results=[asked])), name="anna/one")
    assert "data-test: the adapter broke the model (5 of 5 answers are one and the same).\n" in card
    assert "secret" not in card
