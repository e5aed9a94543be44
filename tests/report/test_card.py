"""The model card: what it tells of a run, and what the Hub can read of it."""

import pytest
import yaml

from mlx_lora.report.card import adapter_card, fused_card
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
