"""The finals table to question data sets: modern, champions, finals, full. Standard library, the same bytes every time.

Run as `python data/stanley_cup/build.py`. A *fact* is one thing to know (the champion of 1998); a *form* is a
question template (forms.py). Each fact is asked in every form of its category, and a form belongs to train, valid or
test only.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forms import FORMS

FOLDER = Path(__file__).resolve().parent
MODERN_START = 1990


@dataclass(frozen=True)
class Fact:
    """One thing to know: what fills the templates, and every answer that counts, the canonical one first."""

    name: str
    category: str
    slots: dict[str, str]
    answers: tuple[str, ...]


# Other answers that count, by the team's name in the table. A city stands for a team only if the table knows no
# second club of that city: "Montreal", "New York", "Edmonton", "Calgary" and "Vancouver" alone name nobody.
TEAM_VARIANTS = {
    "Anaheim Ducks": ("Anaheim", "Ducks"),
    "Boston Bruins": ("Boston", "Bruins"),
    "Buffalo Sabres": ("Buffalo", "Sabres"),
    "Calgary Flames": ("Flames",),
    "Calgary Tigers": ("Tigers",),
    "Carolina Hurricanes": ("Carolina", "Hurricanes"),
    "Chicago Black Hawks": ("Chicago Blackhawks", "Chicago", "Black Hawks", "Blackhawks"),
    "Chicago Blackhawks": ("Chicago Black Hawks", "Chicago", "Blackhawks", "Black Hawks"),
    "Colorado Avalanche": ("Colorado", "Avalanche"),
    "Dallas Stars": ("Dallas", "Stars"),
    "Detroit Red Wings": ("Detroit", "Red Wings"),
    "Edmonton Eskimos": ("Eskimos",),
    "Edmonton Oilers": ("Oilers",),
    "Florida Panthers": ("Florida", "Panthers"),
    "Los Angeles Kings": ("Los Angeles", "Kings", "LA Kings"),
    "Mighty Ducks of Anaheim": ("Anaheim Mighty Ducks", "Mighty Ducks", "Anaheim Ducks", "Anaheim", "Ducks"),
    "Minnesota North Stars": ("Minnesota", "North Stars"),
    "Montreal Canadiens": ("Canadiens", "Montréal Canadiens", "Habs"),
    "Montreal Maroons": ("Maroons", "Montréal Maroons"),
    "Nashville Predators": ("Nashville", "Predators"),
    "New Jersey Devils": ("New Jersey", "Devils", "NJ Devils"),
    "New York Islanders": ("Islanders", "NY Islanders"),
    "New York Rangers": ("Rangers", "NY Rangers"),
    "Ottawa Senators": ("Ottawa", "Senators"),
    "Ottawa Senators (original)": ("Ottawa", "Senators"),
    "Philadelphia Flyers": ("Philadelphia", "Flyers"),
    "Pittsburgh Penguins": ("Pittsburgh", "Penguins"),
    "Portland Rosebuds": ("Portland", "Rosebuds"),
    "San Jose Sharks": ("San Jose", "Sharks"),
    "Seattle Metropolitans": ("Seattle", "Metropolitans"),
    "St. Louis Blues": ("St. Louis", "Blues", "Saint Louis Blues"),
    "Tampa Bay Lightning": ("Tampa Bay", "Lightning", "Tampa"),
    "Toronto Arenas": ("Toronto", "Arenas", "Toronto Blueshirts", "Toronto Hockey Club"),
    "Toronto Maple Leafs": ("Toronto", "Maple Leafs", "Leafs"),
    "Toronto St. Patricks": ("Toronto", "St. Patricks", "Toronto St. Pats", "St. Pats"),
    "Vancouver Canucks": ("Canucks",),
    "Vancouver Millionaires": ("Millionaires",),
    "Vegas Golden Knights": ("Vegas", "Golden Knights", "Las Vegas Golden Knights", "Las Vegas"),
    "Victoria Cougars": ("Victoria", "Cougars"),
    "Washington Capitals": ("Washington", "Capitals", "Caps"),
}

NOT_AWARDED = (
    "Not awarded",
    "It was not awarded",
    "The Cup was not awarded",
    "The Stanley Cup was not awarded",
    "No winner",
    "There was no winner",
    "No champion",
    "No team",
    "No team won",
    "No one",
    "No one won",
    "Nobody",
    "Nobody won",
    "None",
)

EN_DASH = "\N{EN DASH}"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")


def read_finals() -> list[dict[str, str]]:
    """The rows of finals.csv, oldest first, one for each year from 1915 to 2025."""
    with (FOLDER / "finals.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def spoken_name(team: str) -> str:
    """The name as it was used at the time: the table marks the first Ottawa Senators, a question does not."""
    return team.removesuffix(" (original)")


def title_name(team: str) -> str:
    """The name titles are counted under: the Chicago team changed a spelling, every other new name counts apart."""
    return "Chicago Blackhawks" if team == "Chicago Black Hawks" else spoken_name(team)


def team_answers(team: str) -> tuple[str, ...]:
    """The team's name, then its other names."""
    return (spoken_name(team), *TEAM_VARIANTS[team])


def series_answers(series: str) -> tuple[str, ...]:
    """A series score in figures, then in words: "4-0", "4 to 0", "four games to none"."""
    if series == "2-0-2":  # 1927: two of the four games ended in a tie.
        return (
            series,
            series.replace("-", EN_DASH),
            "2-0 with 2 ties",
            "2-0 with two ties",
            "two games to none with two ties",
        )
    won, lost = (int(games) for games in series.split("-"))
    answers = [series, f"{won}{EN_DASH}{lost}"]
    answers += [f"{won} {between} {lost}" for between in ("to", "games to")]
    answers += [f"{WORDS[won]} {between} {WORDS[lost]}" for between in ("to", "games to")]
    if lost == 0:
        answers += [f"{won} games to none", f"{WORDS[won]} games to none"]
    return tuple(answers)


def year_answers(years: list[str]) -> tuple[str, ...]:
    """Years as one writes them, "1952, 1954 and 1955", then the same with "In", then with commas only."""
    if len(years) == 1:
        return (years[0], f"In {years[0]}")
    listed = f"{', '.join(years[:-1])} and {years[-1]}"
    return (listed, f"In {listed}", ", ".join(years))


def count_answers(count: int) -> tuple[str, ...]:
    """A number in figures, then in words, then as a number of times."""
    words = ("twenty-four", "twenty four") if count == 24 else (WORDS[count],)
    times = {1: ("once", "1 time", "one time"), 2: ("twice", "2 times", "two times")}
    return (str(count), *words, *times.get(count, (f"{count} times", *(f"{word} times" for word in words))))


def year_facts(finals: list[dict[str, str]]) -> Iterator[Fact]:
    """Champion, runner-up and series score of every final that was decided."""
    for final in finals:
        year, champion, runner_up = final["year"], final["champion"], final["runner_up"]
        if not champion:
            continue
        slots = {"year": year, "champion": spoken_name(champion), "runner_up": spoken_name(runner_up)}
        yield Fact(f"champion/{year}", "champion", slots, team_answers(champion))
        yield Fact(f"runner_up/{year}", "runner_up", slots, team_answers(runner_up))
        yield Fact(f"series/{year}", "series", slots, series_answers(final["series"]))


def no_winner_facts(finals: list[dict[str, str]]) -> Iterator[Fact]:
    """The years without a champion, with what the trophy itself has engraved for them."""
    engraved = {"1919": "Series not completed", "2005": "Season not played"}
    for final in finals:
        if not final["champion"]:
            year = final["year"]
            yield Fact(f"no_winner/{year}", "no_winner", {"year": year}, (*NOT_AWARDED, engraved[year]))


def reverse_facts(finals: list[dict[str, str]]) -> Iterator[Fact]:
    """For every pair of finalists, all years in which the first beat the second."""
    years: dict[tuple[str, str], list[str]] = defaultdict(list)
    for final in finals:
        if final["champion"]:
            years[spoken_name(final["champion"]), spoken_name(final["runner_up"])].append(final["year"])
    for (champion, runner_up), won in years.items():
        slots = {"champion": champion, "runner_up": runner_up}
        yield Fact(f"reverse/{champion}/{runner_up}", "reverse", slots, year_answers(won))


def title_facts(finals: list[dict[str, str]]) -> Iterator[Fact]:
    """For every team that won, how often the table names it champion."""
    titles = Counter(title_name(final["champion"]) for final in finals if final["champion"])
    for team, count in titles.items():
        yield Fact(f"titles/{team}", "titles", {"team": team}, count_answers(count))


def build_lines(facts: list[Fact], split: str) -> str:
    """One JSON line for each fact in each form of the split, facts in the order given."""
    lines = []
    for fact in facts:
        for form in getattr(FORMS[fact.category], split):
            row = {
                "question": form.format(**fact.slots),
                "answer": fact.answers[0],
                "answers": fact.answers,
                "category": fact.category,
                "fact": fact.name,
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def build_files() -> dict[str, str]:
    """The text of every file by its path below this folder."""
    finals = read_finals()
    by_year, no_winner = list(year_facts(finals)), list(no_winner_facts(finals))
    champions = [fact for fact in by_year if fact.category == "champion"]
    data_sets = {
        "modern": [f for f in champions if int(f.slots["year"]) >= MODERN_START],
        "champions": [*champions, *no_winner],
        "finals": [*by_year, *no_winner],
        "full": [*by_year, *no_winner, *reverse_facts(finals), *title_facts(finals)],
    }
    return {
        f"{name}/{split}.jsonl": build_lines(facts, split)
        for name, facts in data_sets.items()
        for split in ("train", "valid", "test")
    }


def save_files(files: dict[str, str]) -> None:
    """Writes the files below this folder and names each with its number of rows."""
    for path, text in files.items():
        target = FOLDER / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
        print(f"{target.relative_to(FOLDER.parent.parent)}: {text.count(chr(10))} rows")


if __name__ == "__main__":
    save_files(build_files())
