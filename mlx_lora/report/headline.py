"""Did it learn, and did it forget? One short answer each, from what was measured. Knows nothing of HTML."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mlx_lora.evaluation.result_format import EvaluationResult, RightOrWrong
from mlx_lora.report.answers import metric_name, share_text
from mlx_lora.report.asking import changed_since, eval_command
from mlx_lora.report.events import Event, number
from mlx_lora.report.results import RETENTION_SET, Retention, shown_metric
from mlx_lora.report.runs import Run

State = Literal["good", "bad", "unsure", "unknown"]

_LEARNED: Mapping[str, tuple[State, str]] = {
    "learned": ("good", "It learned"),
    "mixed": ("unsure", "It gained and it lost"),
    "no difference": ("unsure", "No difference from the base"),
    "taught nothing": ("unsure", "It taught nothing"),
    "worse": ("bad", "It got worse"),
    "broken": ("bad", "It broke the model"),
}
_NO_LOSS: tuple[State, str] = ("good", "It forgot no more than chance would explain")
_KEPT: Mapping[str, tuple[State, str]] = {
    "learned": _NO_LOSS,
    "mixed": ("unsure", "It kept some and lost some"),
    "no difference": _NO_LOSS,
    "taught nothing": _NO_LOSS,
    "worse": ("bad", "It forgot"),
    "broken": ("bad", "It forgot: the model is broken"),
}
_FEWEST = 6  # right answers of the base: to lose all of fewer has a p above 0.05
_ALONE, _CHANGED = "Not compared with the base", "The adapter changed since it was asked"


@dataclass(frozen=True)
class Headline:
    """An answer in a few words, the figures behind it, and the command that would tell more."""

    state: State
    title: str
    sentence: str
    command: str | None = None


def learning_headline(run: Run) -> Headline:
    """Whether it learned, by its answers; by the validation loss where nothing was asked."""
    own = _of_this_step(run, run.learning_results)
    asked = [result for result in own if result.verdict is not None]
    if asked:
        found = _worst([_learned(result, run) for result in asked])
        return _beside(found, run, run.learning_results)
    if not run.learning_results:
        return _by_losses(run, eval_command(run), "Nobody asked it questions yet.")
    if not own:
        return _unless_losses(run, _changed(run, run.learning_results))
    one = own[0]
    scored = f"{metric_name(one.metric)} {share_text(one, one.metric)}"
    sentence = f"{one.data.name}: {scored}. The base was not asked the same questions."
    return _unless_losses(run, Headline("unknown", _ALONE, sentence, eval_command(run, one)))


def forgetting_headline(run: Run) -> Headline:
    """Whether it forgot, by the questions that it was to leave as they were."""
    own = _of_this_step(run, run.retention_results)
    asked = [result for result in own if result.verdict is not None]
    if asked:
        found = [_kept(result) for result in asked]
        if run.retention is not None and all(result.data.name != run.retention.data for result in asked):
            found.append(_at_the_end(run.retention))  # of other questions: no result here takes its place
        return _beside(_worst(found), run, run.retention_results)
    if run.retention is not None:
        return _at_the_end(run.retention)
    if run.retention_results and not own:
        return _changed(run, run.retention_results)
    command = f"mlx-lora eval {run.typed} --base --data {RETENTION_SET}"
    return Headline("unknown", "Forgetting was not measured", "Nobody asked what it knew before.", command)


def _of_this_step(run: Run, results: list[EvaluationResult]) -> list[EvaluationResult]:
    """Those of the adapter that is in the file, as far as anybody knows."""
    return [result for result in results if run.other_step(result) is None]


def _changed(run: Run, results: list[EvaluationResult]) -> Headline:
    """What to say where only adapters of other steps were asked."""
    return _beside(Headline("unknown", _CHANGED, "", eval_command(run, results[0])), run, results)


def _beside(headline: Headline, run: Run, results: list[EvaluationResult]) -> Headline:
    """The headline, with a word on each result that is of another step's adapter."""
    told = [text for result in results if (text := changed_since(run, result)) is not None]
    return replace(headline, sentence=" ".join(filter(None, [headline.sentence, *told])))


def _learned(result: EvaluationResult, run: Run) -> Headline:
    found, remark = _compared(result, _LEARNED), run.memory_remark(result)
    if not remark:
        return found
    found = replace(found, sentence=f"{found.sentence} {remark}")
    if found.state != "good":
        return found
    if run.trained_share(result) == 1:
        return replace(found, title="It knows its training rows")
    counts = (result.comparison or {}).get(shown_metric(result))
    gained = counts.fixed if isinstance(counts, RightOrWrong) else counts.higher if counts is not None else 0
    by_heart = gained <= (result.data.trained_questions or 0)  # what was asked in training can be all of the gain
    return replace(found, state="unsure", title="It may only remember") if by_heart else found


def _kept(result: EvaluationResult) -> Headline:
    found, known = _compared(result, _KEPT), _known(result)
    if known is None:
        return found
    metric, counts = known
    knew, lost = counts.broken + counts.kept_right, counts.broken
    by = "" if metric == result.metric else f" by {metric_name(metric)}"
    of_known = f"Of {knew} that the base answers right{by}, {lost} {'is' if lost == 1 else 'are'} wrong now."
    sentence = f"{found.sentence} {of_known if knew else 'The base answers none of them right.'}"
    if found.state != "good":
        return Headline(found.state, found.title, sentence)
    return Headline(*_no_loss(knew, lost), sentence + _few(knew))


def _known(result: EvaluationResult) -> tuple[str, RightOrWrong] | None:
    """What became of what the base knew: by the shown metric where it knew enough, else by the one it knew most by."""
    shown = shown_metric(result)
    shares = [(name, one) for name, one in (result.comparison or {}).items() if isinstance(one, RightOrWrong)]
    enough = [(name, one) for name, one in shares if name == shown and one.broken + one.kept_right >= _FEWEST]
    return max(enough or shares, key=lambda pair: (pair[1].broken + pair[1].kept_right, pair[0] == shown), default=None)


def _no_loss(knew: int, lost: int) -> tuple[State, str]:
    """What to say where no loss was found, of so many right answers of the base."""
    if not knew:
        return "unknown", "The base had nothing to forget"
    if knew < _FEWEST:
        return "unsure", "The base knew too few to tell"
    return _NO_LOSS if lost else ("good", "It forgot nothing that was asked")


def _few(knew: int) -> str:
    return f" Losing fewer than {_FEWEST} cannot be told from chance." if 0 < knew < _FEWEST else ""


def _at_the_end(asked: Retention) -> Headline:
    name = metric_name(asked.metric)
    before, after = share_text(asked.base, asked.metric), share_text(asked.adapter, asked.metric)
    sentence = (
        f"{asked.data}, {name}: the base {before}, the adapter {after}. {asked.lost} answers that were right are wrong "
        f"now, {asked.gained} the other way round."
    )
    knew = round(asked.base.count * asked.base.value(asked.metric))
    state, title = _KEPT["worse"] if asked.forgot else _no_loss(knew, asked.lost)
    return Headline(state, title, sentence + _few(knew))


def _compared(result: EvaluationResult, titles: Mapping[str, tuple[State, str]]) -> Headline:
    assert result.verdict is not None
    state, title = titles[result.verdict.kind]
    return Headline(state, title, f"{result.data.name}: {result.verdict.sentence}.")


def _worst(headlines: list[Headline]) -> Headline:
    """The least happy of them, with the sentences of all."""
    order: list[State] = ["bad", "unsure", "unknown", "good"]
    chosen = min(headlines, key=lambda one: order.index(one.state))
    return Headline(chosen.state, chosen.title, " ".join(one.sentence for one in headlines))


def _unless_losses(run: Run, headline: Headline) -> Headline:
    """The headline, unless the losses tell of something worse."""
    losses = _by_losses(run, headline.command or "", headline.sentence)
    return losses if losses.state in ("bad", "unsure") else headline


def _by_losses(run: Run, command: str, unasked: str) -> Headline:
    """What the validation losses say; `unasked` says what is known of answers."""
    ends = run.events.of("end")
    if run.ended_by == "error":
        message = str(ends[-1].get("message") or "The files do not say which.")
        return Headline("bad", "It ended with an error", message, None)
    validations, base = run.events.validations, run.base_loss
    if base is None or run.best_validation is None:
        return Headline("unknown", "Not tested yet", unasked, command)
    losses = [number(one, "loss") for one in validations]
    best, last = min(loss for loss in losses[1:] if math.isfinite(loss)), losses[-1]
    rows = _more_or_fewer_rows(run, fell=best < base)
    if rows is not None:
        return Headline(rows.state, rows.title, f"{rows.sentence} {unasked}", command)
    if best < base:
        title = "The validation loss fell"
        return Headline("unknown", title, f"From {base:.4f} to {best:.4f} nats a token. {unasked}", command)
    sentence = f"No validation came below the first one's {base:.4f} nats a token; the last one was {last:.4f}."
    from_base = run.setting("lora.start_from") is None  # an adapter's loss can be next to nothing
    if not math.isfinite(last) or (from_base and last > 2 * base):
        return Headline("bad", "It broke the model", f"{sentence} {unasked}", command)
    title = "It taught nothing" if last == base else "No sign that it learned"
    return Headline("unsure", title, f"{sentence} {unasked}", command)


def _more_or_fewer_rows(run: Run, *, fell: bool) -> Headline | None:
    """What the rows that come out right say where the loss says the opposite; the run itself has judged them."""
    first, best = run.events.validations[0], run.best_validation
    better = best.get("better") if best else None
    if best is None or not isinstance(better, bool) or better == fell:
        return None
    title, loss = ("Fewer", "fell") if fell else ("More", "did not fall")
    before, after, rows = (_count(one, name) for one, name in ((first, "right"), (best, "right"), (best, "rows")))
    sentence = f"{before} of {rows} at step 0, {after} at step {best['step']}, though the validation loss {loss}."
    return Headline("unsure" if fell else "unknown", f"{title} validation rows come out right", sentence)


def _count(event: Event, name: str) -> str:
    return str(int(found)) if math.isfinite(found := number(event, name)) else "?"
