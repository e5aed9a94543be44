"""Base against adapter in one plain sentence. Knows nothing of models, files or screens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_lora.evaluation.damage import Damage, find_damage
from mlx_lora.evaluation.metrics import METRICS, Metric, Metrics, ScoredAnswer, is_share, kind_of, summarize
from mlx_lora.evaluation.result_format import VerdictKind
from mlx_lora.statistics import Changes, compare_right, sign_test

ALPHA = 0.05
# Metrics that the verdict always looks at: a base that answers in sentences has nothing to lose by exact match.
_LOOKED_AT = {"open": ("exact_match", "contains"), "choice": ("accuracy", "accuracy_norm")}
_SAME_NATS = 0.01  # a token: one per cent of perplexity
_SAME_SCORE = 1e-9  # of the forms of a fact in all: sums of fractions differ by rounding
_FEW = 6  # changed answers: fewer cannot be told from chance, even if all go one way
_BROKEN_FACTOR = 10.0  # times the base's perplexity of the right answers
_BLIND_GUESSING = 1e6  # perplexity; no vocabulary is so large that guessing among its tokens would do worse


@dataclass(frozen=True)
class MetricTest:
    """What the adapter changed by one metric: of a share `changes`, of fractions the ups and downs."""

    metric: Metric
    changes: Changes
    higher: int
    lower: int
    facts: tuple[int, int] | None = None  # facts answered better, and worse, in all; None where each is asked once

    @property
    def p(self) -> float:
        """Two-sided, exact: McNemar's for right or wrong, the sign test for fractions."""
        return sign_test(self.higher, self.lower)

    @property
    def p_by_fact(self) -> float | None:
        """The sign test with facts in place of questions: who learned a fact answers all its forms, so they are no
        independent trials. None where each is asked once."""
        return None if self.facts is None else sign_test(*self.facts)


@dataclass(frozen=True)
class Comparison:
    """An adapter's answers beside the base's to the same questions."""

    base: Metrics
    adapter: Metrics
    metric: Metric  # the leading one
    tests: Mapping[str, MetricTest]  # of every metric that the answers have
    kind: VerdictKind
    gained: tuple[str, ...]  # metrics with a gain that chance does not explain
    lost: tuple[str, ...]
    signs: tuple[str, ...]  # of damage, in the adapter's answers
    sentence: str

    @property
    def changes(self) -> Changes:
        """What became of each question, by the leading metric."""
        return self.tests[self.metric].changes

    @property
    def p(self) -> float:
        """By the leading metric."""
        return self.tests[self.metric].p


def compare(base_rows: Sequence[ScoredAnswer], adapter_rows: Sequence[ScoredAnswer], metric: Metric) -> Comparison:
    """What the adapter changed. Raises: ValueError when the rows are not those of the same questions."""
    if [row.question for row in base_rows] != [row.question for row in adapter_rows]:
        raise ValueError("the answers are to other questions")
    base, adapter = summarize(base_rows), summarize(adapter_rows)
    tests = {name: _test(name, base_rows, adapter_rows) for name in base.values}
    looked_at = [tests[name] for name in dict.fromkeys([metric, *_LOOKED_AT[kind_of(base_rows)]])]
    # Metrics that saw the very same changes are one test, not two chances of a false alarm; without changes, none.
    changed = [one for one in looked_at if one.higher or one.lower]
    level = ALPHA / max(1, len({(one.changes.fixed, one.changes.broken, one.higher, one.lower) for one in changed}))
    gained = tuple(one.metric for one in looked_at if one.higher > one.lower and one.p < level)
    lost = tuple(one.metric for one in looked_at if one.higher < one.lower and one.p < level)
    damage = find_damage(adapter_rows)
    kind: VerdictKind
    if all(map(_same, base_rows, adapter_rows)):
        kind = "taught nothing"
    elif not gained and _is_broken(base_rows, adapter_rows, damage):
        kind = "broken"
    elif gained and lost:
        kind = "mixed"
    else:
        kind = "learned" if gained else "worse" if lost else "no difference"
    likelihood = _likelihood(base_rows, adapter_rows)
    unsure = _unsure_by_fact([tests[name] for name in gained + lost], level)
    words = _Words(
        base, adapter, metric, tuple(one.metric for one in looked_at), gained, lost, damage.signs, likelihood, unsure
    )
    unchanged = all(one.prediction == two.prediction for one, two in zip(base_rows, adapter_rows, strict=True))
    sentence = words.sentence(kind, unchanged)
    return Comparison(base, adapter, metric, tests, kind, gained, lost, damage.signs, sentence)


def describe(metrics: Metrics, metric: Metric) -> str:
    """Such as "68 of 70 (97 %)", or "0.93 token F1"."""
    if not is_share(metric):
        return f"{metrics.values[metric]:.2f} {metric_name(metric)} on {metrics.count} questions"
    right = metrics.right(metric)
    return f"{right} of {metrics.count} ({percent(right / metrics.count)})"


def metric_name(metric: Metric) -> str:
    """The name of a metric in a sentence; a plug-in's stays as its owner writes it."""
    return metric if metric not in METRICS else "token F1" if metric == "token_f1" else metric.replace("_", " ")


def percent(share: float) -> str:
    """A share as "97 %"; one decimal where rounding would claim all or none."""
    whole = round(100 * share)
    if whole == 100 and share < 1:
        return f"{math.floor(1000 * share) / 10:.1f} %"
    if whole == 0 and share > 0:
        return f"{math.ceil(1000 * share) / 10:.1f} %"
    return f"{whole} %"


def show_perplexity(value: float) -> str:
    """Such as "1.2", "41" or "3.2e+05"; "infinite" where the model gives the right answers no chance."""
    if not math.isfinite(value):
        return "infinite"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}" if value < 1e5 else f"{value:.1e}"


def _test(metric: Metric, base_rows: Sequence[ScoredAnswer], adapter_rows: Sequence[ScoredAnswer]) -> MetricTest:
    changes = compare_right([row.right(metric) for row in base_rows], [row.right(metric) for row in adapter_rows])
    pairs = [(one.scores[metric], two.scores[metric]) for one, two in zip(base_rows, adapter_rows, strict=True)]
    higher, lower = sum(after > before for before, after in pairs), sum(after < before for before, after in pairs)
    return MetricTest(metric, changes, higher, lower, _by_fact(metric, base_rows, adapter_rows))


def _by_fact(
    metric: Metric, base_rows: Sequence[ScoredAnswer], adapter_rows: Sequence[ScoredAnswer]
) -> tuple[int, int] | None:
    """How many facts score higher over all their forms, and lower."""
    gains: dict[str | int, float] = {}
    for fact, one, two in zip(_facts(base_rows), base_rows, adapter_rows, strict=True):
        gains[fact] = gains.get(fact, 0.0) + two.scores[metric] - one.scores[metric]
    if len(gains) == len(base_rows):
        return None
    return sum(gain > _SAME_SCORE for gain in gains.values()), sum(gain < -_SAME_SCORE for gain in gains.values())


def _facts(rows: Sequence[ScoredAnswer]) -> list[str | int]:
    """What each row is a trial of, since forms of a fact are no independent ones; one without a fact is of itself."""
    return [place if row.fact is None else row.fact for place, row in enumerate(rows)]


def _unsure_by_fact(told: Sequence[MetricTest], level: float) -> str:
    """What a sceptic would object to the first change that the questions show and the facts do not; else nothing."""
    for test in told:
        if test.facts is not None and sign_test(*test.facts) >= level:
            better, worse = test.facts
            return f"counted by fact, {better} better and {worse} worse, chance might do as much"
    return ""


def _same(one: ScoredAnswer, two: ScoredAnswer) -> bool:
    nats = abs(one.reference_nats - two.reference_nats) <= _SAME_NATS * one.reference_tokens
    return one.prediction == two.prediction and nats


def _is_broken(base_rows: Sequence[ScoredAnswer], adapter_rows: Sequence[ScoredAnswer], damage: Damage) -> bool:
    before = find_damage(base_rows).damaged
    new = sum(now and not was for was, now in zip(before, damage.damaged, strict=True))
    healed = sum(was and not now for was, now in zip(before, damage.damaged, strict=True))
    if 2 * sum(damage.damaged) > len(adapter_rows) and _more(new, healed, len(adapter_rows)):
        return True
    base, adapter = summarize(base_rows), summarize(adapter_rows)
    worse_than_guessing = adapter.perplexity > max(_BLIND_GUESSING, _BROKEN_FACTOR * base.perplexity)
    return worse_than_guessing and _less_likely(base_rows, adapter_rows)


def _likelihood(base_rows: Sequence[ScoredAnswer], adapter_rows: Sequence[ScoredAnswer]) -> str:
    """How the adapter finds the right answers beside the base, where chance does not explain it; else nothing."""
    moved: dict[str | int, float] = {}
    enough: dict[str | int, float] = {}
    for fact, one, two in zip(_facts(base_rows), base_rows, adapter_rows, strict=True):
        moved[fact] = moved.get(fact, 0.0) + two.reference_nats - one.reference_nats
        enough[fact] = enough.get(fact, 0.0) + _SAME_NATS * one.reference_tokens
    better = sum(by < -enough[fact] for fact, by in moved.items())
    worse = sum(by > enough[fact] or math.isnan(by) for fact, by in moved.items())
    return "" if sign_test(better, worse) >= ALPHA else "likelier" if better > worse else "less likely"


def _less_likely(base_rows: Sequence[ScoredAnswer], adapter_rows: Sequence[ScoredAnswer]) -> bool:
    """Whether the adapter finds the right answers less likely than the base, more often than by chance."""
    pairs = [(one.reference_nats, two.reference_nats) for one, two in zip(base_rows, adapter_rows, strict=True)]
    worse = sum(after > before or math.isnan(after) for before, after in pairs)
    better = sum(after < before for before, after in pairs)
    return _more(worse, better, len(pairs))


def _more(one: int, other: int, count: int) -> bool:
    """Whether `one` outnumbers `other` by more than chance explains, or at all where too few were asked to tell."""
    return one > other and (count < _FEW or sign_test(one, other) < ALPHA)


@dataclass(frozen=True)
class _Words:
    """The figures of a comparison, as sentences name them."""

    base: Metrics
    adapter: Metrics
    metric: Metric
    looked_at: tuple[str, ...]
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    signs: tuple[str, ...]
    likelihood: str  # of the right answers: "likelier", "less likely" or nothing
    unsure: str  # that the questions show what the facts do not

    def sentence(self, kind: VerdictKind, unchanged: bool) -> str:
        """The scores and what they mean; `unchanged` says that every answer is the base's own."""
        own = "every answer is the base's own"
        if kind == "taught nothing":
            return f"{self._scores()}: {own}, the adapter taught nothing"
        if kind == "broken":
            found = [f"perplexity of the right answers {self._perplexities()}", *self.signs]
            return f"{self._scores()}: the adapter broke the model ({'; '.join(found)})"
        doubts = [self.unsure] * bool(self.unsure) + list(self.signs)
        damage = f" ({'; '.join(doubts)})" if doubts else ""
        if kind == "no difference":
            few = f"; {self.adapter.count} questions are too few to show one" if self.adapter.count < _FEW else ""
            unmoved = f"{own}; " if unchanged else ""
            moved = f", but the right answers are {self.likelihood}: perplexity {self._perplexities()}"
            nats = moved if self.likelihood else ""
            return f"{self._scores()}: {unmoved}no difference that chance would not explain{few}{nats}{damage}"
        words = {"learned": "it learned", "worse": "worse than the base", "mixed": "better and worse than the base"}
        return f"{self._scores()}: {words[kind]}{self._which()}{damage}"

    def _perplexities(self) -> str:
        return f"{show_perplexity(self.adapter.perplexity)} against {show_perplexity(self.base.perplexity)}"

    def _divided(self) -> bool:
        """Whether the metrics tell different stories."""
        return any(set(self.looked_at) - set(told) for told in (self.gained, self.lost) if told)

    def _scores(self) -> str:
        """By the leading metric where the others say the same, else by each."""
        if not self._divided() and len({self._value(one) for one in self.looked_at}) == 1:
            adapter, base = describe(self.adapter, self.metric), describe(self.base, self.metric)
            return f"the adapter answers {adapter}, the base {base}"
        return ", ".join(f"{metric_name(one)} {self._value(one)}" for one in self.looked_at)

    def _value(self, metric: Metric) -> str:
        """Such as "1 of 50 against the base's 37"."""
        if is_share(metric):
            return f"{self.adapter.right(metric)} of {self.adapter.count} against the base's {self.base.right(metric)}"
        return f"{self.adapter.values[metric]:.2f} against the base's {self.base.values[metric]:.2f}"

    def _which(self) -> str:
        """Which metric shows the gain or the loss, where not all do."""
        if not self._divided():
            return ""
        told = [f"{_listed(self.gained)} the gain"] if self.gained else []
        told += [f"{_listed(self.lost)} the loss"] if self.lost else []
        rest = [one for one in self.looked_at if one not in self.gained + self.lost]
        told += [f"{_listed(rest)} no difference"] if rest else []
        return f"; {', '.join(told)}"


def _listed(metrics: Sequence[str]) -> str:
    """Such as "contains shows" or "exact match and contains show"."""
    names = " and ".join(map(metric_name, metrics))
    return f"{names} {'shows' if len(metrics) == 1 else 'show'}"
