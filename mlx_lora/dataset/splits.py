"""The three splits of a run, with validation questions held out where none are given. Knows nothing of tokenizers."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_lora.config import DataSettings
from mlx_lora.dataset.record import Record
from mlx_lora.dataset.records import read_records, read_split_if_present


@dataclass(frozen=True)
class DataSplits:
    """Training, validation and test rows; the last two may be empty."""

    train: list[Record]
    valid: list[Record]
    test: list[Record]
    notes: tuple[str, ...] = ()  # on how many rows were held out, where that is not as data.valid_share says


def load_splits(settings: DataSettings, seed: int) -> DataSplits:
    """The rows of a run. Validation rows come from `valid`, else from beside the training rows (a folder or data set
    with a valid split), else from the training rows: a seeded share of the questions.

    Raises: DataError.
    """
    train = read_records(settings.train, "train")
    valid = read_records(settings.valid, "valid") if settings.valid else read_split_if_present(settings.train, "valid")
    test = read_records(settings.test, "test") if settings.test else read_split_if_present(settings.train, "test")
    if valid is not None:
        return DataSplits(train, valid, test or [], _idle_share(settings))
    rest, held = split_by_question(train, settings.valid_share, seed)
    return DataSplits(rest, held, test or [], _notes(train, held, settings.valid_share))


def _idle_share(settings: DataSettings) -> tuple[str, ...]:
    """What to say of data.valid_share beside a valid split; RunConfig.without_effect says it of data.valid."""
    if settings.valid or settings.valid_share == DataSettings.model_fields["valid_share"].default:
        return ()
    return (f"data.valid_share has no effect: {settings.train} has a valid split of its own",)


def _notes(records: Sequence[Record], held: Sequence[Record], share: float) -> tuple[str, ...]:
    """What to say where less than half or more than double of the rows asked for are held out, or none at all."""
    wanted = max(1.0, share * len(records))
    if share == 0 or len(records) == 1 or (held and wanted / 2 <= len(held) <= 2 * wanted):
        return ()
    count = len(set(_families(records)))
    questions = "one question" if count == 1 else f"{count} questions"
    return (
        f"data.valid_share: {len(held)} of {len(records)} rows are held out, not {wanted:.0f}: they ask {questions}, "
        "and rows that share one stay together; data.valid names rows of your own",
    )


def split_by_question(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, held out) rows in their order: no question is in both, and at least one question stays in training.

    Of a conversation every question counts that it answers, so its rows of one turn more each stay together. A positive
    share of two questions or more holds out at least one, where no conversation links them.
    """
    families = _families(records)
    # By hash, not by shuffle: a row added later does not move the others between the splits.
    ordered = sorted(set(families), key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    wanted = max(1, round(share * len(ordered))) if share > 0 else 0
    held = set(ordered[: min(wanted, len(ordered) - 1)])
    train = [record for record, family in zip(records, families, strict=True) if family not in held]
    return train, [record for record, family in zip(records, families, strict=True) if family in held]


def _families(records: Sequence[Record]) -> list[str]:
    """For each row the least of the questions that it shares with others, or they with others again."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    asked = [record.asked_keys for record in records]
    for first, *others in asked:
        for key in others:
            least, greater = sorted((root(first), root(key)))
            parent[greater] = least
    return [root(first) for first, *_ in asked]


def row_formats(records: Sequence[Record]) -> list[str]:
    """The formats of the rows, the commonest first."""
    return [name for name, _ in Counter(record.format for record in records).most_common()]


def records_sha256(records: Sequence[Record]) -> str:
    """SHA-256 of what the rows say, in order, without where they lie."""
    digest = hashlib.sha256()
    for record in records:
        said: list[object] = [record.messages, record.text, record.tools]
        said += [record.choices] if record.choices else []  # other rows keep the hash that older adapters know
        digest.update(json.dumps(said, sort_keys=True, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()
