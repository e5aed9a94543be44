"""What a page must not tell: absolute paths and secrets."""

import pytest

from mlx_lora.report.privacy import short_path, without_paths, without_secrets, yaml_without_paths

HOME = "/ho" + "me/anna"  # in pieces: no committed file names a path of a machine


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{HOME}/runs/a/data/train.jsonl", "…/data/train.jsonl"),
        ("/tmp/train.jsonl", "…/tmp/train.jsonl"),
        ("~/models/tiny", "…/models/tiny"),
        ("data/train.jsonl", "data/train.jsonl"),
        ("general-knowledge", "general-knowledge"),
        ("C:\\Users\\anna\\train.jsonl", "…/train.jsonl"),
        (f"{HOME}/train.jsonl", "…/train.jsonl"),
        ("/mnt/c/Us" + "ers/anna/llama", "…/llama"),
        (HOME, "…"),
        (f"{HOME}/with a blank/train.jsonl", "…/with a blank/train.jsonl"),
    ],
)
def test_an_absolute_path_is_cut_to_its_last_two_parts(text, shown):
    assert short_path(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"no space in {HOME}/.cache/mlx-lora/frozen: 3 GB needed", "no space in …/mlx-lora/frozen: 3 GB needed"),
        (f'cannot read "{HOME}/a/b.jsonl"', 'cannot read "…/a/b.jsonl"'),
        ("4 nats/token, train/valid, 1/2", "4 nats/token, train/valid, 1/2"),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        ("org/model at rev/1", "org/model at rev/1"),
        (f"{HOME}/My Models/llama", "…/My Models/llama"),
        (f"no rows in '{HOME}/My Data/train.jsonl'", "no rows in '…/My Data/train.jsonl'"),
        (f"data:{HOME}/a/b.jsonl, file://{HOME}/a/b.jsonl", "data:…/a/b.jsonl, …/a/b.jsonl"),
        ("/no_think", "/no_think"),
    ],
)
def test_paths_in_a_sentence_are_cut_and_slashes_in_words_stay(text, shown):
    assert without_paths(text) == shown


def test_whose_home_folder_it_is_is_told_nowhere():
    """A file that lay in a home folder itself was shown with that folder, so with its owner: …/anna/train.jsonl."""
    for text in (f"{HOME}/t.jsonl", f"{HOME}/My Models/m", f"see {HOME}/t.jsonl:3", f"{HOME}/.cache/a/b", HOME):
        for clean in (without_paths, short_path, lambda text: yaml_without_paths(f"data:\n  train: {text}\n")):
            assert clean is short_path or "anna" not in clean(text), text
    assert "anna" not in short_path(f"{HOME}/t.jsonl")


def test_secrets_are_blotted_out_wherever_they_stand():
    value = {"a": ["token hf_" + "x" * 34, "https://anna:geheim@example.org/m"], "b": 3, "c": None}
    assert without_secrets(value) == {"a": ["token hf_…", "https://…@example.org/m"], "b": 3, "c": None}


def test_a_questions_own_path_stays_where_only_secrets_go():
    assert without_secrets("What is in /etc/ssh/sshd_config?") == "What is in /etc/ssh/sshd_config?"


def test_a_run_file_keeps_its_lines_and_loses_its_absolute_paths():
    text = f"data:\n  train: {HOME}/my data/train.jsonl\n  valid: '{HOME}/x/v.jsonl'\n  test: data/test.jsonl\n"
    shown = "data:\n  train: …/my data/train.jsonl\n  valid: '…/x/v.jsonl'\n  test: data/test.jsonl\n"
    assert yaml_without_paths(text) == shown
