"""The Stanley Cup data sets: built as they lie on disk, split by form, equal a fact, and true to finals.csv."""

import csv
import json
import re
from collections import Counter, defaultdict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from tests.data_sets.squad import squad_normal

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "stanley_cup"
DATA_SETS = ("modern", "champions", "finals", "full")
SPLITS = ("train", "valid", "test")
CITIES_OF_SEVERAL_CLUBS = {"montreal", "new york", "edmonton", "calgary", "vancouver"}
NAMES_OF_ONE_CLUB = (
    {"Chicago Black Hawks", "Chicago Blackhawks"},
    {"Mighty Ducks of Anaheim", "Anaheim Ducks"},
    {"Toronto Arenas", "Toronto St. Patricks", "Toronto Maple Leafs"},
    {"Ottawa Senators (original)", "Ottawa Senators"},
)


def read_rows(data_set: str, split: str) -> list[dict]:
    """The rows of one file, keys in the order of the file."""
    with (FOLDER / data_set / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_finals() -> list[dict[str, str]]:
    """The rows of finals.csv."""
    with (FOLDER / "finals.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def answers_by_fact(data_set: str) -> dict[str, list[str]]:
    """The accepted answers of every fact, as its test rows give them."""
    return {row["fact"]: row["answers"] for row in read_rows(data_set, "test")}


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """data/stanley_cup/build.py as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))  # As Python itself does for a script: build.py imports forms.py.
    spec = spec_from_file_location("stanley_cup_build", FOLDER / "build.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_on_disk_are_exactly_what_the_script_builds(build: ModuleType) -> None:
    files = build.build_files()
    assert sorted(files) == sorted(f"{data_set}/{split}.jsonl" for data_set in DATA_SETS for split in SPLITS)
    for path, text in files.items():
        assert (FOLDER / path).read_bytes() == text.encode(), f"{path}: run python data/stanley_cup/build.py"


@pytest.mark.parametrize(
    ("data_set", "split", "rows", "rows_a_fact"),
    [
        ("modern", "train", 350, 10),
        ("modern", "valid", 35, 1),
        ("modern", "test", 70, 2),
        ("champions", "train", 1110, 10),
        ("champions", "valid", 111, 1),
        ("champions", "test", 222, 2),
        ("finals", "train", 3290, 10),
        ("finals", "valid", 329, 1),
        ("finals", "test", 658, 2),
        ("full", "train", 4380, 10),
        ("full", "valid", 438, 1),
        ("full", "test", 876, 2),
    ],
)
def test_every_fact_has_the_same_number_of_rows(data_set: str, split: str, rows: int, rows_a_fact: int) -> None:
    facts = Counter(row["fact"] for row in read_rows(data_set, split))
    assert facts.total() == rows
    assert set(facts.values()) == {rows_a_fact}
    assert facts.keys() == answers_by_fact(data_set).keys()


def test_full_has_these_facts_in_each_category() -> None:
    assert Counter(row["category"] for row in read_rows("full", "valid")) == {
        "champion": 109,
        "runner_up": 109,
        "series": 109,
        "reverse": 80,
        "titles": 29,
        "no_winner": 2,
    }


@pytest.mark.parametrize("data_set", DATA_SETS)
@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_five_keys_in_order_and_the_canonical_answer_first(data_set: str, split: str) -> None:
    for row in read_rows(data_set, split):
        assert list(row) == ["question", "answer", "answers", "category", "fact"]
        assert row["answers"][0] == row["answer"]
        assert row["fact"].startswith(f"{row['category']}/")


def test_no_question_is_asked_twice_in_full() -> None:
    questions = Counter(squad_normal(row["question"]) for split in SPLITS for row in read_rows("full", split))
    assert [question for question, count in questions.items() if count > 1] == []


def test_no_form_of_valid_or_test_is_a_training_form(build: ModuleType) -> None:
    train = {squad_normal(form) for forms in build.FORMS.values() for form in forms.train}
    valid = {squad_normal(form) for forms in build.FORMS.values() for form in forms.valid}
    test = {squad_normal(form) for forms in build.FORMS.values() for form in forms.test}
    assert (len(train), len(valid), len(test)) == (50, 5, 10)
    assert not train & valid
    assert not train & test
    assert not valid & test


def test_modern_is_the_champion_part_of_full_from_1990() -> None:
    for split in SPLITS:
        rows = [row for row in read_rows("full", split) if row["category"] == "champion"]
        assert read_rows("modern", split) == [row for row in rows if row["fact"] >= "champion/1990"]
    years = sorted(answers_by_fact("modern"))
    assert years == [f"champion/{year}" for year in range(1990, 2026) if year != 2005]


def test_champions_is_the_champion_part_of_full_with_the_years_that_had_none() -> None:
    for split in SPLITS:
        rows = [row for row in read_rows("full", split) if row["category"] in ("champion", "no_winner")]
        assert read_rows("champions", split) == rows
    years = sorted(int(fact.split("/")[1]) for fact in answers_by_fact("champions"))
    assert years == list(range(1915, 2026))


def test_finals_is_full_without_reverse_questions_and_title_counts() -> None:
    for split in SPLITS:
        rows = [row for row in read_rows("full", split) if row["category"] not in ("reverse", "titles")]
        assert read_rows("finals", split) == rows


def test_modern_asks_in_1998_in_these_words_for_the_detroit_red_wings() -> None:
    rows = [row for row in read_rows("modern", "train") if row["fact"] == "champion/1998"]
    assert rows[0] == {
        "question": "Who won the Stanley Cup in 1998?",
        "answer": "Detroit Red Wings",
        "answers": ["Detroit Red Wings", "Detroit", "Red Wings"],
        "category": "champion",
        "fact": "champion/1998",
    }


def test_facts_of_a_year_are_those_of_the_table() -> None:
    answers = answers_by_fact("full")
    for final in read_finals():
        year = final["year"]
        if year in ("1919", "2005"):
            assert not final["champion"]
            assert not {f"champion/{year}", f"runner_up/{year}", f"series/{year}"} & answers.keys()
            continue
        assert answers[f"champion/{year}"][0] == final["champion"].replace(" (original)", "")
        assert answers[f"runner_up/{year}"][0] == final["runner_up"].replace(" (original)", "")
        assert answers[f"series/{year}"][0] == final["series"]


@pytest.mark.parametrize(
    ("fact", "answer"),
    [
        ("champion/1927", "Ottawa Senators"),
        ("champion/1934", "Chicago Black Hawks"),
        ("champion/1998", "Detroit Red Wings"),
        ("champion/2010", "Chicago Blackhawks"),
        ("champion/2025", "Florida Panthers"),
        ("runner_up/2003", "Mighty Ducks of Anaheim"),
        ("series/1927", "2-0-2"),
        ("series/1942", "4-3"),
        ("no_winner/1919", "Not awarded"),
        ("no_winner/2005", "Not awarded"),
        ("reverse/Detroit Red Wings/Montreal Canadiens", "1952, 1954 and 1955"),
        ("reverse/Boston Bruins/New York Rangers", "1929 and 1972"),
        ("reverse/Detroit Red Wings/Washington Capitals", "1998"),
        ("titles/Montreal Canadiens", "24"),
        ("titles/Toronto Maple Leafs", "11"),
        ("titles/Chicago Blackhawks", "6"),
        ("titles/Ottawa Senators", "4"),
    ],
)
def test_this_fact_has_this_answer(fact: str, answer: str) -> None:
    assert answers_by_fact("full")[fact][0] == answer


def test_title_counts_are_the_champions_of_the_table_counted() -> None:
    champions = [final["champion"].replace("Black Hawks", "Blackhawks") for final in read_finals()]
    counted = {
        f"titles/{team.replace(' (original)', '')}": str(champions.count(team)) for team in set(champions) - {""}
    }
    titles = {fact: found[0] for fact, found in answers_by_fact("full").items() if fact.startswith("titles/")}
    assert titles == counted
    assert sum(int(count) for count in titles.values()) == 109


def test_every_title_question_says_it_is_counted_from_a_table_of_1915_to_2025() -> None:
    questions = [row["question"] for split in SPLITS for row in read_rows("full", split) if row["category"] == "titles"]
    assert len(questions) == 29 * 13
    for question in questions:
        assert re.search(r"\b(table|list|listed)\b", question), question
        assert "1915" in question, question
        assert "2025" in question, question


def test_reverse_answers_are_all_years_of_the_pair_and_no_other() -> None:
    answers = {fact: found for fact, found in answers_by_fact("full").items() if fact.startswith("reverse/")}
    listed = []
    for fact, accepted in answers.items():
        _, champion, runner_up = fact.split("/")
        for answer in accepted:
            assert re.findall(r"\d{4}", answer) == re.findall(r"\d{4}", accepted[0])
        listed += [(year, champion, runner_up) for year in re.findall(r"\d{4}", accepted[0])]
    finals = [
        tuple(final[column].replace(" (original)", "") for column in ("year", "champion", "runner_up"))
        for final in read_finals()
        if final["champion"]
    ]
    assert sorted(listed) == finals


def test_accepted_answers_of_a_fact_differ_after_normalization() -> None:
    for fact, accepted in answers_by_fact("full").items():
        normal = [squad_normal(answer) for answer in accepted]
        assert len(set(normal)) == len(normal), fact
        assert "" not in normal, fact


def test_no_accepted_name_stands_for_two_clubs(build: ModuleType) -> None:
    owners = defaultdict(set)
    for team in build.TEAM_VARIANTS:
        for answer in build.team_answers(team):
            owners[squad_normal(answer)].add(team)
    for answer, teams in owners.items():
        assert len(teams) == 1 or any(teams <= names for names in NAMES_OF_ONE_CLUB), (answer, teams)
    assert not CITIES_OF_SEVERAL_CLUBS & owners.keys()


def test_the_name_list_holds_the_teams_of_the_table_and_no_other(build: ModuleType) -> None:
    played = {final[column] for final in read_finals() for column in ("champion", "runner_up")} - {""}
    assert set(build.TEAM_VARIANTS) == played


def test_the_two_finalists_of_a_year_share_no_accepted_name() -> None:
    answers = answers_by_fact("full")
    for final in read_finals():
        if final["champion"]:
            winners, losers = answers[f"champion/{final['year']}"], answers[f"runner_up/{final['year']}"]
            assert not set(winners) & set(losers), final["year"]


def test_no_accepted_answer_stands_in_its_own_question() -> None:
    for split in SPLITS:
        for row in read_rows("full", split):
            question = f" {squad_normal(row['question'])} "
            given_away = [answer for answer in row["answers"] if f" {squad_normal(answer)} " in question]
            assert given_away == [], row["question"]


def test_the_readme_states_the_row_count_of_every_file() -> None:
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `([\w/]+\.\w+)` \| (\d+) \|", readme, re.MULTILINE)
    stated = {path: int(rows) for path, rows in lines}
    found = {}
    for path in [*(ROOT / "data").rglob("*.jsonl"), FOLDER / "finals.csv"]:
        header = 1 if path.suffix == ".csv" else 0
        found[path.relative_to(ROOT / "data").as_posix()] = len(path.read_bytes().splitlines()) - header
    assert stated == found
