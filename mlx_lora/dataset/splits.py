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


def load_splits(settings: DataSettings, seed: int) -> DataSplits:
    """The rows of a run. Validation rows come from `valid`, else from beside the training rows (a folder or data set
    with a valid split), else from the training rows: a seeded share of the questions.

    Raises: DataError.
    """
    train = read_records(settings.train, "train")
    valid = read_records(settings.valid, "valid") if settings.valid else read_split_if_present(settings.train, "valid")
    test = read_records(settings.test, "test") if settings.test else read_split_if_present(settings.train, "test")
    if valid is None:
        train, valid = split_by_question(train, settings.valid_share, seed)
    return DataSplits(train, valid, test or [])


def split_by_question(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, held out) rows in their order: no question is in both, and at least one question stays in training.

    A positive share of two questions or more holds out at least one.
    """
    questions = {record.question_key for record in records}
    # By hash, not by shuffle: a row added later does not move the others between the splits.
    ordered = sorted(questions, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    wanted = max(1, round(share * len(ordered))) if share > 0 else 0
    held = set(ordered[: min(wanted, len(ordered) - 1)])
    train = [record for record in records if record.question_key not in held]
    return train, [record for record in records if record.question_key in held]


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
