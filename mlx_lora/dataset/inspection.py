"""What a person should know of the data before a run: counts, lengths, faults, leaks. Knows nothing of files or MLX."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlx_lora.config import DataSettings, RunConfig
from mlx_lora.dataset.batches import padded_length, plan_epoch
from mlx_lora.dataset.examples import ChatTokenizer, Example, ExampleSet, build_examples
from mlx_lora.dataset.groups import training_groups
from mlx_lora.dataset.record import Record, folded
from mlx_lora.dataset.records import joined_faults
from mlx_lora.dataset.replay import replay_rows
from mlx_lora.dataset.splits import DataSplits
from mlx_lora.errors import DataError

_QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_SAMPLES = 5


@dataclass(frozen=True)
class SplitReport:
    """One split in numbers; tokens are counted as trained, lengths before any limit."""

    rows: int
    examples: int  # rows that are used: neither dropped nor faulty
    formats: dict[str, int]
    length_quantiles: dict[str, int]  # tokens; empty without rows
    over_limit: int
    dropped: int
    shortened: int
    tokens: int
    trained_tokens: int
    without_end_token: int  # rows whose answer would not learn to end
    duplicates: int  # rows that repeat an earlier one
    notes: list[str]

    @property
    def trained_share(self) -> float:
        """Share of the tokens that are trained targets."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Contradiction:
    """One question with two answers that do not accept each other."""

    question: str
    answers: tuple[str, str]
    places: tuple[str, str]


@dataclass(frozen=True)
class Inspection:
    """All splits together; faults stop a run, warnings do not."""

    splits: dict[str, SplitReport]
    overlaps: dict[str, int]  # "train/valid" -> distinct questions in both
    contradictions: list[Contradiction]
    steps_per_epoch: int
    steps: int
    replay_rows: int  # that join the training rows in an epoch (data.replay)
    padding_share: float  # of the first epoch's batches, without replay rows
    faults: list[str]
    hints: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for name, report in self.splits.items():
            values["splits"][name]["trained_share"] = report.trained_share
        return values

    def raise_faults(self) -> None:
        """Raises: DataError with up to ten faults, where there are any."""
        if self.faults:
            raise DataError(joined_faults(self.faults), self.hints[0] if self.hints else None)


def build_split_examples(
    splits: DataSplits, tokenizer: ChatTokenizer, settings: DataSettings, *, stop_on_fault: bool = True
) -> dict[str, ExampleSet]:
    """The examples of "train", "valid" and "test". Raises: DataError as build_examples."""
    return {
        name: build_examples(records, tokenizer, settings, stop_on_fault=stop_on_fault)
        for name, records in _named(splits).items()
    }


def inspect_splits(
    splits: DataSplits, built: Mapping[str, ExampleSet], eos_ids: frozenset[int], config: RunConfig
) -> Inspection:
    """The report on the records and the examples that were built of them (by build_split_examples)."""
    records = _named(splits)
    reports = {name: _report(records[name], built[name], eos_ids, config.data) for name in records}
    lengths = [len(example.tokens) - 1 for example in built["train"].examples]
    groups = training_groups(built["train"].examples, config.train.batch_rows, config.train.group_by_prefix)
    plan = plan_epoch(lengths, config.train.batch_rows, seed=config.train.seed, epoch=0, groups=groups)
    steps_per_epoch = -(-len(plan) // config.train.gradient_accumulation_steps)
    steps = config.train.steps or (config.train.epochs or 0) * steps_per_epoch
    overlaps = {f"train/{name}": _overlap(splits.train, records[name]) for name in ("valid", "test")}
    contradictions = _contradictions([record for split in records.values() for record in split])
    faults = [fault for name in records for fault in built[name].faults]
    hints = list(dict.fromkeys(hint for name in records for hint in built[name].hints))
    if not lengths and not faults:
        faults.append(
            f"{config.data.train}: no training rows are left: all {len(splits.train)} have more than "
            f"data.max_seq_length = {config.data.max_seq_length} tokens"
        )
        hints.append("raise data.max_seq_length")
    for name, report in reports.items():
        if report.without_end_token:
            rows = _rows(report.without_end_token)
            faults.append(f"{name}: {rows} without a trained end token: the answers would never end")
            hints.append("set data.chat_template to one that writes an end token after each answer")
    if config.train.early_stopping_patience is not None and not built["valid"].examples:
        faults.append("train.early_stopping_patience: there are no validation rows to look at: it would never stop")
        hints.append("set data.valid, raise data.valid_share, or leave train.early_stopping_patience out")
    answered = replay_rows(len(lengths), config.data.replay)
    if config.lora.init == "contrastive" and not answered:
        faults.append(
            "lora.init: contrastive compares the rows with the base's own answers, and data.replay wants none"
        )
        hints.append("set data.replay (0.25 is usual), or leave lora.init out")
    if config.lora.init == "contrastive" and config.lora.start_from is not None:
        faults.append("lora.init: contrastive chooses an A, and lora.start_from brings one")
        hints.append("leave one of the two out")
    return Inspection(
        splits=reports,
        overlaps=overlaps,
        contradictions=contradictions,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        replay_rows=answered,
        padding_share=_padding_share(lengths, plan),
        faults=faults,
        hints=hints,
        warnings=[*config.without_effect, *splits.notes, *_warnings(reports, overlaps, contradictions)],
    )


def trained_segments(example: Example, tokenizer: ChatTokenizer) -> list[tuple[str, bool]]:
    """The row's text in pieces, each with whether its tokens are trained."""
    edges = np.flatnonzero(np.diff(example.loss_mask)) + 1
    starts = [0, *(int(edge) for edge in edges)]
    stops = [*starts[1:], len(example.tokens)]
    return [
        (tokenizer.decode(example.tokens[start:stop].tolist()), bool(example.loss_mask[start]))
        for start, stop in zip(starts, stops, strict=True)
    ]


def _named(splits: DataSplits) -> dict[str, list[Record]]:
    return {"train": splits.train, "valid": splits.valid, "test": splits.test}


def _report(
    records: Sequence[Record], built: ExampleSet, eos_ids: frozenset[int], settings: DataSettings
) -> SplitReport:
    lengths = np.array(built.full_lengths, dtype=np.int64)
    quantiles: dict[str, int] = {}
    if len(lengths):
        ranks = np.quantile(lengths, list(_QUANTILES.values()), method="inverted_cdf")
        quantiles = {name: int(rank) for name, rank in zip(_QUANTILES, ranks, strict=True)}
    return SplitReport(
        rows=len(records),
        examples=len(built.examples),
        formats=dict(Counter(record.format for record in records)),
        length_quantiles=quantiles,
        over_limit=int((lengths > settings.max_seq_length).sum()),
        dropped=built.dropped,
        shortened=built.shortened,
        tokens=sum(len(example.tokens) for example in built.examples),
        trained_tokens=sum(int(example.loss_mask.sum()) for example in built.examples),
        without_end_token=sum(not _learns_to_end(example, eos_ids) for example in built.examples),
        duplicates=len(records) - len({_whole_key(record) for record in records}),
        notes=[*built.notes, *_unread_note(records)],
    )


def _unread_note(records: Sequence[Record]) -> list[str]:
    """One line on the keys that no row's format reads, such as a `context` beside question and answer."""
    counts = Counter(key for record in records for key in record.unread)
    named = [f'"{key[:60]}" ({_rows(count)})' for key, count in counts.most_common(_SAMPLES)]
    if not named:
        return []
    return ["keys that are not read: " + ", ".join(named) + (", …" if len(counts) > _SAMPLES else "")]


def _learns_to_end(example: Example, eos_ids: frozenset[int]) -> bool:
    return not eos_ids.isdisjoint(example.tokens[example.loss_mask].tolist())


def _whole_key(record: Record) -> str:
    return json.dumps([record.messages, record.text, record.tools], sort_keys=True, default=str)


def _prompt_key(record: Record) -> str:
    """What is asked, without case, spacing and system messages; a plain text asks itself."""
    if record.text is not None:
        return folded(record.text)
    turns = [message for message in record.messages[:-1] if message["role"] not in ("system", "developer")]
    return json.dumps([[turn["role"], folded(turn["content"])] for turn in turns])


def _overlap(train: Sequence[Record], other: Sequence[Record]) -> int:
    return len(_asked_keys(train) & _asked_keys(other))


def _asked_keys(records: Sequence[Record]) -> set[str]:
    """Every question that is answered, those of earlier turns too: they are trained and validated as the last ones."""
    return {key for record in records for key in record.asked_keys}


def _contradictions(records: Sequence[Record]) -> list[Contradiction]:
    """The first contradiction of every question that has one; accepted variants do not contradict."""
    first: dict[str, Record] = {}
    found: dict[str, Contradiction] = {}
    for record in records:
        if not record.answers:
            continue
        key = _prompt_key(record)
        other = first.setdefault(key, record)
        accepted = {folded(answer) for answer in other.answers}
        if key not in found and accepted.isdisjoint(folded(answer) for answer in record.answers):
            found[key] = Contradiction(
                record.question, (other.answers[0], record.answers[0]), (other.place, record.place)
            )
    return list(found.values())


def _padding_share(lengths: Sequence[int], plan: Sequence[Sequence[int]]) -> float:
    places = sum(padded_length(max(lengths[row] for row in rows)) * len(rows) for rows in plan)
    return 1.0 - sum(lengths) / places if places else 0.0


def _warnings(
    reports: Mapping[str, SplitReport], overlaps: Mapping[str, int], contradictions: Sequence[Contradiction]
) -> list[str]:
    warnings = []
    for name, report in reports.items():
        if report.dropped:
            warnings.append(f"{name}: {_rows(report.dropped)} over the limit left out")
        if report.shortened:
            warnings.append(f"{name}: {_rows(report.shortened)} over the limit: the prompt was shortened")
        if report.duplicates:
            warnings.append(f"{name}: {_rows(report.duplicates)} repeating an earlier one exactly")
        warnings += [f"{name}: {note}" for note in report.notes]
    for pair, count in overlaps.items():
        if count:
            warnings.append(f"{pair}: {count} questions in both: the scores will look better than they are")
    for case in contradictions[:_SAMPLES]:
        one, two = case.answers
        warnings.append(f'{case.places[1]}: "{two}" contradicts "{one}" at {case.places[0]}: the same question')
    if len(contradictions) > _SAMPLES:
        warnings.append(f"… and {len(contradictions) - _SAMPLES} more questions with contradicting answers")
    return warnings


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
