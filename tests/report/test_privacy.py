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


# In pieces: no committed file holds what looks like a secret, and no scanner of them stops here.
LETTERS = "aB3dE6gH9k"
PEM = "-----BEGIN " + "RSA PRIVATE KEY-----"
END = "-----END " + "RSA PRIVATE KEY-----"
LINES = f"{LETTERS * 6}+/ab\n{LETTERS * 6}+/cd\n{LETTERS * 2}=="


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("HF_TOKEN=hf_" + LETTERS * 3 + "wxyz", "HF_TOKEN=hf_…"),
        ("hf_" + "oauth_" + LETTERS * 2 + "." + LETTERS + "-_x!", "hf_…!"),
        ("sk-" + "proj-" + LETTERS * 4, "sk-…"),
        ("sk-" + "ant-api03-" + LETTERS * 4, "sk-…"),
        *((f"{sign}_{LETTERS * 3}wxyzab", f"{sign}_…") for sign in ("ghp", "gho", "ghu", "ghs", "ghr")),
        ("github_" + f"pat_{LETTERS * 2}ab_{LETTERS * 5}", "github_pat_…"),
        ("glpat-" + LETTERS * 2, "glpat-…"),
        ("key AKIA" + "Q3EGS7WXYZ24ABCD.", "key AKIA…."),
        ("ASIA" + "Q3EGS7WXYZ24ABCD", "ASIA…"),
        ('"AWS_SECRET_ACCESS_KEY": "' + LETTERS * 3 + 'a/b+wxyz12"', '"AWS_SECRET_ACCESS_KEY": "…"'),
        ("aws_secret_access_key = " + LETTERS * 4, "aws_secret_access_key = …"),
        *((f"{sign}-123456789012-{LETTERS * 2}", f"{sign}-…") for sign in ("xoxb", "xoxp", "xoxa", "xoxe.xoxp")),
        ("xapp-" + f"1-A0{LETTERS}-1234567890-abcdef", "xapp-…"),
        ("key=AIza" + LETTERS * 3 + "_-xyz&q=1", "key=AIza…&q=1"),
        ("Bearer ya29." + f"a0{LETTERS * 2}-_{LETTERS}", "Bearer ya29.…"),
        (f"a\n{PEM}\n{LINES}\n{END}\nb", f"a\n{PEM}…\nb"),
        (f"{PEM}\nProc-Type: 4,ENCRYPTED\n\n{LINES}\n{END}", f"{PEM}…"),
        (f"{PEM}\\n{LINES}\\n{END}\\n".replace("\n", "\\n"), f"{PEM}…\\n"),
        (f"{PEM}\n{LINES}", f"{PEM}…"),
        (f"{PEM.replace('RSA ', '')}\n  {LETTERS * 6} and no more", f"{PEM.replace('RSA ', '')}… and no more"),
    ],
)
def test_secrets_of_every_common_kind_lose_all_but_their_sign(text, shown):
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown
    assert LETTERS not in without_paths(text)


@pytest.mark.parametrize(
    "text",
    [
        "commit 3534eab0c1d2e3f405162738495a6b7c8d9e0f1a",
        "sha256 " + "0123456789abcdef" * 4,
        "Which task-oriented risk-averse sk-learn-contrib-extras do you use?",
        "call hf_hub_download_and_convert_everything(…)",
        "What is AKIA? And AKIAISTANBULISTHEKEYTOAFRICA, ASIA, ASIAN, EURASIA?",
        "AIza and ya29. are beginnings; xoxb- and xapp-application-level too",
        f"What stands between {PEM} and {END}?",
        f"{PEM}: which program writes this line, and is internationalization meant?",
        "set aws_secret_access_key: null",
        "a1b2c3d4-e5f6-7890-abcd-ef1234567890",
        "Pneumonoultramicroscopicsilicovolcanoconiosis_is_a_long_word",
    ],
)
def test_words_hashes_and_questions_are_no_secrets(text):
    assert without_secrets(text) == text


def test_a_long_key_that_is_cut_off_is_no_long_wait():
    """A pattern with two ways through the lines of a key needs minutes for this one."""
    assert without_secrets(f"{PEM}\n" + "A" * 200_000 + "-") == f"{PEM}…-"
    assert without_secrets("-----BEGIN " * 20_000) == "-----BEGIN " * 20_000


def test_a_questions_own_path_stays_where_only_secrets_go():
    assert without_secrets("What is in /etc/ssh/sshd_config?") == "What is in /etc/ssh/sshd_config?"


def test_a_run_file_keeps_its_lines_and_loses_its_absolute_paths():
    text = f"data:\n  train: {HOME}/my data/train.jsonl\n  valid: '{HOME}/x/v.jsonl'\n  test: data/test.jsonl\n"
    shown = "data:\n  train: …/my data/train.jsonl\n  valid: '…/x/v.jsonl'\n  test: data/test.jsonl\n"
    assert yaml_without_paths(text) == shown
