"""Did it learn, did it forget: what a page answers in each case, with the command that would tell more."""

import math

import pytest

from mlx_lora.report.headline import forgetting_headline, learning_headline
from mlx_lora.report.runs import read_run
from tests.report.run_folders import SETTINGS, START, result, scored, step, validation, whole_run, write_run

GENERAL = {"name": "general-knowledge", "source": "general-knowledge"}


def read(tmp_path, *results, events=None):
    return read_run(write_run(tmp_path / "one", events, results=results))


@pytest.mark.parametrize(
    ("kind", "state", "title"),
    [
        ("learned", "good", "It learned"),
        ("mixed", "unsure", "It gained and it lost"),
        ("no difference", "unsure", "No difference from the base"),
        ("taught nothing", "unsure", "It taught nothing"),
        ("worse", "bad", "It got worse"),
        ("broken", "bad", "It broke the model"),
    ],
)
def test_every_verdict_of_eval_has_its_words(tmp_path, kind, state, title):
    answer = learning_headline(read(tmp_path, result(kind=kind)))
    assert (answer.state, answer.title, answer.command) == (state, title, None)
    assert answer.sentence == f"data-test: the adapter answers 3 of 5, the base 2 of 5: {kind}."


def test_the_runs_own_test_rows_decide_not_other_questions(tmp_path):
    other = result(name="other", source="data/other.jsonl", kind="worse")
    assert learning_headline(read(tmp_path, result(), other)).title == "It learned"


def test_of_several_data_sets_the_worst_gives_the_title(tmp_path):
    results = [result(name="a", source="a.jsonl"), result(name="b", source="b.jsonl", kind="worse")]
    answer = learning_headline(read(tmp_path, *results))
    assert answer.title == "It got worse"
    assert "a: the adapter" in answer.sentence
    assert "b: the adapter" in answer.sentence


def test_knowing_the_training_rows_is_not_called_learning(tmp_path):
    known = result()
    with_held_out = known.model_copy(update={"data": known.data.model_copy(update={"trained_on": True})})
    for asked in (result(sha256="a" * 64), with_held_out):
        answer = learning_headline(read(tmp_path, asked))
        assert answer.title == "It knows its training rows"
        assert answer.sentence.endswith("this shows memory, not learning.")


def test_without_the_base_nothing_is_claimed(tmp_path):
    answer = learning_headline(read(tmp_path, result(base=False)))
    assert (answer.state, answer.title) == ("unknown", "Not compared with the base")
    assert answer.sentence.startswith("data-test: exact match 3 of 5, 60\N{NO-BREAK SPACE}% (23–88).")
    assert answer.command == "mlx-lora eval …/one --base".replace("…", f"…/{tmp_path.name}")


def test_without_the_base_a_loss_that_never_fell_still_decides(tmp_path):
    events = [START, validation(0, 3.0), step(1), validation(1, 3.0)]
    answer = learning_headline(read(tmp_path, result(base=False), events=events))
    assert (answer.state, answer.title) == ("unsure", "It taught nothing")
    assert answer.sentence.endswith("The base was not asked the same questions.")


def test_without_answers_the_losses_are_told_and_the_command_named(tmp_path):
    answer = learning_headline(read(tmp_path))
    assert (answer.state, answer.title) == ("unknown", "The validation loss fell")
    assert answer.sentence == "From 5.0000 to 0.5000 nats a token. Nobody asked it questions yet."
    assert answer.command.endswith("/one --base")


@pytest.mark.parametrize(
    ("last", "state", "title"),
    [
        (5.0, "unsure", "It taught nothing"),
        (5.1, "unsure", "No sign that it learned"),
        (29.0, "bad", "It broke the model"),
        (math.nan, "bad", "It broke the model"),
    ],
)
def test_a_loss_that_never_fell_is_called_so(tmp_path, last, state, title):
    events = [START, validation(0, 5.0), step(1), validation(1, 7.0), step(2), validation(2, last)]
    answer = learning_headline(read(tmp_path, events=events))
    assert (answer.state, answer.title) == (state, title)


@pytest.mark.parametrize(
    ("loss", "better", "before", "after", "state", "title", "sentence"),
    [
        (6.0, True, 3, 20, "unknown", "More validation rows come out right", "3 of 35 at step 0, 20 at step 1, though"),
        (
            4.0,
            False,
            20,
            3,
            "unsure",
            "Fewer validation rows come out right",
            "20 of 35 at step 0, 3 at step 1, though",
        ),
        (4.0, True, 3, 20, "unknown", "The validation loss fell", "From 5.0000 to 4.0000 nats a token."),
        (6.0, False, 3, 3, "unsure", "No sign that it learned", "No validation came below the first one's 5.0000 nats"),
    ],
)
def test_right_rows_outweigh_the_loss_as_they_do_in_training(
    tmp_path, loss, better, before, after, state, title, sentence
):
    rows = [
        validation(0, 5.0) | {"right": before, "rows": 35},
        validation(1, loss, best=True) | {"right": after, "rows": 35, "better": better},
    ]
    answer = learning_headline(read(tmp_path, events=[START, rows[0], step(1), rows[1]]))
    assert (answer.state, answer.title) == (state, title)
    assert answer.sentence.startswith(sentence)


def test_a_loss_above_next_to_nothing_is_not_called_broken_where_the_run_started_from_an_adapter(tmp_path):
    events = [START, validation(0, 0.0004), step(1), validation(1, 0.001)]
    settings = SETTINGS.replace("rank: 8", "rank: 8\n  start_from: adapters/first")
    answer = learning_headline(read_run(write_run(tmp_path / "one", events, settings=settings)))
    assert (answer.state, answer.title) == ("unsure", "No sign that it learned")
    assert answer.sentence.startswith("No validation came below the first one's 0.0004 nats a token; the last one was ")


def test_a_run_that_ended_with_an_error_says_which(tmp_path):
    end = {"event": "end", "step": 1, "ended_by": "error", "message": "step 2: the loss is nan"}
    answer = learning_headline(read(tmp_path, events=[START, step(1), end]))
    assert (answer.state, answer.title, answer.sentence) == ("bad", "It ended with an error", "step 2: the loss is nan")


def test_forgetting_is_not_guessed(tmp_path):
    answer = forgetting_headline(read(tmp_path, result()))
    assert (answer.state, answer.title) == ("unknown", "Forgetting was not measured")
    assert answer.command.endswith("/one --base --data general-knowledge")


KNOWN = ["kept right"] * 8 + ["kept wrong"] * 3  # by the base, and what it did not know


@pytest.mark.parametrize(
    ("kind", "broken", "state", "title"),
    [
        ("worse", 9, "bad", "It forgot"),
        ("broken", 9, "bad", "It forgot: the model is broken"),
        ("mixed", 9, "unsure", "It kept some and lost some"),
        ("no difference", 2, "good", "It forgot no more than chance would explain"),
        ("learned", 2, "good", "It forgot no more than chance would explain"),
        ("no difference", 0, "good", "It forgot nothing that was asked"),
        ("learned", 0, "good", "It forgot nothing that was asked"),
        ("taught nothing", 0, "good", "It forgot nothing that was asked"),
    ],
)
def test_general_knowledge_tells_what_was_forgotten(tmp_path, kind, broken, state, title):
    """Reported by a review: with broken answers, "learned" was titled "It forgot nothing that was asked"."""
    answer = forgetting_headline(read(tmp_path, result(["broken"] * broken + KNOWN, **GENERAL, kind=kind)))
    assert (answer.state, answer.title) == (state, title)
    assert answer.sentence.endswith(f"Of {8 + broken} that the base answers right, {broken} are wrong now.")


@pytest.mark.parametrize("kind", ["learned", "no difference", "taught nothing"])
def test_a_base_that_answers_none_right_had_nothing_to_forget(tmp_path, kind):
    answer = forgetting_headline(read(tmp_path, result(["kept wrong"] * 9, **GENERAL, kind=kind)))
    assert (answer.state, answer.title) == ("unknown", "The base had nothing to forget")
    assert answer.sentence.endswith(f": {kind}. The base answers none of them right.")


def test_five_right_answers_are_too_few_to_call_nothing_forgotten(tmp_path):
    """Five of five broken is p = 0.06: `eval --limit 5` showed a green "nothing forgotten"."""
    answer = forgetting_headline(read(tmp_path, result(["broken"] * 5, **GENERAL, kind="no difference")))
    assert (answer.state, answer.title) == ("unsure", "The base knew too few to tell")
    assert answer.sentence.endswith(
        "Of 5 that the base answers right, 5 are wrong now. Losing fewer than 6 cannot be told from chance."
    )
    six = result(["kept right"] * 5 + ["broken"], **GENERAL, kind="no difference")
    answer = forgetting_headline(read(tmp_path, six))
    assert (answer.state, answer.title) == ("good", "It forgot no more than chance would explain")
    assert answer.sentence.endswith("Of 6 that the base answers right, 1 is wrong now.")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("general-knowledge-choices", "general-knowledge-choices"),
        ("general-knowledge-0123abcd", "general-knowledge"),
    ],
)
def test_every_built_in_data_set_tells_of_forgetting(tmp_path, name, source):
    """general-knowledge-choices was taken for questions that the run was to teach."""
    run = read(tmp_path, result(["broken"] * 9 + KNOWN, name=name, source=source, kind="worse"))
    assert forgetting_headline(run).title == "It forgot"
    assert learning_headline(run).title == "The validation loss fell"


def test_what_the_base_knew_is_counted_by_the_metric_that_shows_the_loss(tmp_path):
    """A base that answers in sentences has nothing right by exact match, the leading metric."""
    pairs = [(True, False)] * 9 + [(True, True)] * 3
    asked = scored(result(["kept wrong"] * 12, **GENERAL, kind="worse"), "contains", pairs, lost=["contains"])
    answer = forgetting_headline(read(tmp_path, asked))
    assert answer.title == "It forgot"
    assert answer.sentence.endswith("Of 12 that the base answers right by contains, 9 are wrong now.")
    kept = scored(result(["kept wrong"] * 12, **GENERAL, kind="no difference"), "contains", [(True, True)] * 12)
    answer = forgetting_headline(read(tmp_path, kept))
    assert (answer.state, answer.title) == ("good", "It forgot nothing that was asked")
    assert answer.sentence.endswith("Of 12 that the base answers right by contains, 0 are wrong now.")


def test_a_leading_metric_of_fractions_counts_what_was_known_by_a_share(tmp_path):
    asked = result(["kept right"] * 7 + ["broken"], **GENERAL, kind="no difference")
    asked = scored(asked, "token_f1", [(0.5, 0.5)] * 8, leads=True)
    answer = forgetting_headline(read(tmp_path, asked))
    assert answer.sentence.endswith("Of 8 that the base answers right by exact match, 1 is wrong now.")


def test_general_knowledge_does_not_tell_whether_it_learned(tmp_path):
    run = read(tmp_path, result(**GENERAL))
    assert learning_headline(run).title == "The validation loss fell"


EVENT = {
    **{"event": "retention", "step": 6, "data": "general-knowledge", "questions": 50, "base": 37, "adapter": 1},
    **{"lost": 36, "gained": 0, "p": 2.9e-11, "metric": "contains", "forgot": True},
}


def test_what_the_run_asked_at_its_end_counts_where_eval_was_not_asked(tmp_path):
    answer = forgetting_headline(read(tmp_path, events=[*whole_run(), EVENT]))
    assert (answer.state, answer.title) == ("bad", "It forgot")
    assert answer.sentence.replace("\N{NO-BREAK SPACE}", " ") == (
        "general-knowledge, contains: the base 37 of 50, 74 % (60–84), the adapter 1 of 50, 2 % (0–10). "
        "36 answers that were right are wrong now, 0 the other way round."
    )
    kept = {**EVENT, "adapter": 36, "lost": 1, "forgot": False}
    answer = forgetting_headline(read(tmp_path, events=[*whole_run(), EVENT, kept]))
    assert (answer.state, answer.title) == ("good", "It forgot no more than chance would explain")
    all_kept = {**EVENT, "adapter": 37, "lost": 0, "forgot": False}
    answer = forgetting_headline(read(tmp_path, events=[*whole_run(), EVENT, all_kept]))
    assert (answer.state, answer.title) == ("good", "It forgot nothing that was asked")


def test_a_base_that_knows_nothing_has_nothing_to_forget(tmp_path):
    event = {**EVENT, "base": 0, "adapter": 0, "lost": 0, "forgot": False}
    assert forgetting_headline(read(tmp_path, events=[*whole_run(), event])).title == "The base had nothing to forget"


def test_a_base_that_knows_five_at_the_end_knows_too_few(tmp_path):
    event = {**EVENT, "base": 5, "adapter": 0, "lost": 5, "p": 0.0625, "forgot": False}
    answer = forgetting_headline(read(tmp_path, events=[*whole_run(), event]))
    assert (answer.state, answer.title) == ("unsure", "The base knew too few to tell")


def test_a_retention_event_of_another_version_is_passed_over(tmp_path):
    run = read(tmp_path, events=[*whole_run(), {"event": "retention", "step": 6}])
    assert forgetting_headline(run).title == "Forgetting was not measured"


RETENTION = {
    **{"event": "retention", "step": 6, "data": "my-facts", "metric": "contains", "questions": 50},
    **{"base": 37, "adapter": 1, "lost": 36, "gained": 0, "p": 1e-9, "forgot": True},
}


def test_what_the_run_itself_found_forgotten_is_not_hidden_by_another_set(tmp_path):
    kept = result(["kept right"] * 9, kind="no difference", **GENERAL)
    answer = forgetting_headline(read(tmp_path, kept, events=[*whole_run(), RETENTION]))
    assert (answer.state, answer.title) == ("bad", "It forgot")
    assert "36 answers that were right are wrong now" in answer.sentence
    same = forgetting_headline(read(tmp_path, kept, events=[*whole_run(), {**RETENTION, "data": "general-knowledge"}]))
    assert (same.state, same.title) == ("good", "It forgot nothing that was asked"), "asked again since"


@pytest.mark.parametrize(
    ("trained", "state", "title", "words"),
    [
        (5, "good", "It knows its training rows", "All 5 were asked in training too: this shows memory, not learning."),
        (2, "unsure", "It may only remember", "2 of the 5 were asked in training too: there it may be memory."),
        (1, "good", "It learned", "1 of the 5 were asked in training too: there it may be memory."),
        (0, "good", "It learned", "the base 2 of 5: learned."),
    ],
)
def test_questions_that_the_training_asked_are_told(tmp_path, trained, state, title, words):
    """Two of the five questions were fixed: where as many were asked in training, that can be all of the gain."""
    asked = result()
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"trained_questions": trained})})
    answer = learning_headline(read(tmp_path, asked))
    assert (answer.state, answer.title) == (state, title)
    assert answer.sentence.endswith(words)


def test_the_runs_own_rows_are_known_however_their_path_is_spelled(tmp_path):
    own, other = result(source="./data/../data/test.jsonl"), result(name="z", source="data/z.jsonl", kind="worse")
    assert learning_headline(read(tmp_path / "a", own, other)).title == "It learned"
    kept = SETTINGS.replace("train:\n  epochs", "train:\n  retention: keep.jsonl\n  epochs")
    lost = result(name="keep", source="./keep.jsonl", kind="worse")
    run = read_run(write_run(tmp_path / "b", settings=kept, results=[lost]))
    assert (forgetting_headline(run).title, run.learning_results) == ("It forgot", [])


@pytest.mark.parametrize("source", ["data/valid.jsonl", "data/train.jsonl"])
def test_without_test_rows_validation_and_held_out_rows_decide(tmp_path, source):
    settings = SETTINGS.replace("  test: data/test.jsonl\n", "")
    own, other = result(name="own", source=source), result(name="z", source="data/z.jsonl", kind="worse")
    run = read_run(write_run(tmp_path / "one", settings=settings, results=[own, other]))
    assert learning_headline(run).title == "It learned"
