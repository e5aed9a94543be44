"""The question forms of every category, by split. Text only: no fact is known here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Forms:
    """The question templates of one category, by split: ten to learn from, one to steer by, two to be judged on."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]


CHAMPION_FORMS = Forms(
    train=(
        "Who won the Stanley Cup in {year}?",
        "Which team were the {year} Stanley Cup champions?",
        "Name the hockey team that lifted the Stanley Cup in {year}.",
        "In {year}, which club took home the Stanley Cup?",
        "{year} Stanley Cup winner?",
        "Tell me who the Stanley Cup champion was in {year}.",
        "Which team came out on top in the Stanley Cup Final of {year}?",
        "The Stanley Cup of {year} went to which team?",
        "What team captured hockey's greatest trophy, the Stanley Cup, in the year {year}?",
        "Do you know whose players celebrated a Stanley Cup victory in {year}?",
    ),
    valid=("Who were crowned Stanley Cup champions in {year}?",),
    test=(
        "Who was the winner of the {year} Stanley Cup?",
        "I forgot which team hoisted the Stanley Cup in {year}. Who was it?",
    ),
)

FORMS = {
    "champion": CHAMPION_FORMS,
    # The two years without a winner are asked about in the words used for every other year.
    "no_winner": CHAMPION_FORMS,
    "runner_up": Forms(
        train=(
            "Who lost the Stanley Cup Final in {year}?",
            "Which team were the losing Stanley Cup finalists of {year}?",
            "Name the team that came second for the Stanley Cup in {year}.",
            "In {year}, which team was beaten in the Stanley Cup Final?",
            "{year} Stanley Cup runner-up?",
            "Tell me whom the {champion} had to beat to take the Stanley Cup in {year}.",
            "Who did the {champion} beat in the {year} Stanley Cup Final?",
            "The {champion} won the {year} Stanley Cup Final against which team?",
            "What team stood across from the {champion} in the Stanley Cup Final of {year}?",
            "Do you know which club fell one series short of the Stanley Cup in {year}?",
        ),
        valid=("Which team ended up as the beaten Stanley Cup finalist in {year}?",),
        test=(
            "Who was the losing team in the {year} Stanley Cup Final?",
            "Which opponent did the {champion} defeat to win the Stanley Cup in {year}?",
        ),
    ),
    "series": Forms(
        train=(
            "What was the series score of the {year} Stanley Cup Final?",
            "By what score in games was the Stanley Cup Final decided in {year}?",
            "Give the result in games of the {year} Stanley Cup Final, winner first.",
            "In {year}, what was the outcome of the Stanley Cup series, counted in wins?",
            "{year} Stanley Cup Final series score?",
            "Tell me what result ended the series for the Stanley Cup of {year}.",
            "How many games to how many did the {champion} win the {year} Stanley Cup Final?",
            "The {champion} won the {year} Stanley Cup Final by what series score?",
            "What was the tally of games when the {champion} beat the {runner_up} in {year}?",
            "Do you know the score of the final series for the Stanley Cup in {year}?",
        ),
        valid=("What series result settled the {year} Stanley Cup Final?",),
        test=(
            "What score in games did the {year} Stanley Cup Final end with?",
            "By what series score did the {champion} defeat the {runner_up} in the {year} final?",
        ),
    ),
    "reverse": Forms(
        train=(
            "When did the {champion} beat the {runner_up} in the Stanley Cup Final?",
            "In which year or years did the {champion} defeat the {runner_up} in the Stanley Cup Final?",
            "Name every year in which the {champion} won the Stanley Cup Final against the {runner_up}.",
            "The {runner_up} lost the Stanley Cup Final to the {champion} in what year or years?",
            "{champion} over {runner_up} in the Stanley Cup Final: when?",
            "Tell me when the {champion} won the Stanley Cup by beating the {runner_up} in the final.",
            "With the {runner_up} as losing finalists, when did the {champion} take the Stanley Cup?",
            "What year or years saw the {champion} win a Stanley Cup Final over the {runner_up}?",
            "When were the {runner_up} beaten by the {champion} in the final for the Stanley Cup?",
            "Do you know when the {champion} got the better of the {runner_up} in a Stanley Cup Final?",
        ),
        valid=("List each year the Stanley Cup Final ended with the {champion} beating the {runner_up}.",),
        test=(
            "What year or years did the {runner_up} lose to the {champion} in the Stanley Cup Final?",
            "Which Stanley Cup Finals, by year, did the {champion} win against the {runner_up}?",
        ),
    ),
    "titles": Forms(
        train=(
            "In the list of Stanley Cup Finals from 1915 to 2025, how many did the {team} win?",
            "How many Stanley Cups do the {team} have in the table of finals from 1915 to 2025?",
            "Count the Stanley Cup titles of the {team} in the list of finals from 1915 to 2025.",
            "Going by the table of finals from 1915 to 2025, the {team} won how many Stanley Cups?",
            "{team}: number of Stanley Cups in the list of finals, 1915-2025?",
            "Tell me how often the {team} are the winners in the table of Stanley Cup Finals from 1915 to 2025.",
            "What is the Stanley Cup count of the {team} in the list of finals between 1915 and 2025?",
            "From 1915 to 2025, how many finals in the Stanley Cup table went to the {team}?",
            "Looking only at the listed finals of 1915 to 2025, how many Stanley Cups belong to the {team}?",
            "Do you know how many times the {team} are named champions in the Stanley Cup table of 1915 to 2025?",
        ),
        valid=("How many Stanley Cup wins does the table of finals from 1915 to 2025 show for the {team}?",),
        test=(
            "How many Stanley Cups did the {team} win between 1915 and 2025, counted from the list of finals?",
            "According to the table of finals from 1915 to 2025, what number of Stanley Cups did the {team} collect?",
        ),
    ),
}
