"""Who is asked and what: adapters with their rendering, data sets with their names. Knows nothing of models."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_lora.config import RunConfig
from mlx_lora.dataset.builtin import BUILTIN_DATA_SETS
from mlx_lora.dataset.record import Record
from mlx_lora.dataset.records import read_records, read_split_if_present
from mlx_lora.dataset.splits import records_sha256, split_by_question
from mlx_lora.errors import DataError, MlxLoraError
from mlx_lora.evaluation.metrics import CHOICE_METRICS, OPEN_METRICS
from mlx_lora.evaluation.questions import require_askable
from mlx_lora.evaluation.result_format import DataKind, hash_answers
from mlx_lora.files import typed_path
from mlx_lora.lora.adapter import AdapterFolder
from mlx_lora.lora.rendering import Rendering

_COMMON_NAMES = {"train", "valid", "validation", "test", "data", "questions", "eval"}


@dataclass(frozen=True)
class Subject:
    """An adapter to evaluate."""

    label: str
    folder: Path
    adapter: AdapterFolder
    rendering: Rendering
    run: RunConfig | None  # its run.yaml, where it has one


@dataclass(frozen=True)
class Source:
    """A data set: a name for result files, where it came from, its hash and length, and the rows to ask."""

    name: str
    path: str
    sha256: str
    rows: int
    records: list[Record]
    held_out: bool = False  # of the training file, by the run itself
    every: Sequence[Record] = ()  # the rows that `records` are taken from

    def facts(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "name": self.name,
            "source": self.path,
            "sha256": self.sha256,
            "answers_sha256": self.answers_sha256,
            "rows": self.rows,
            "asked": len(self.records),
            "kind": self.kind,
            "held_out": self.held_out,
        }

    @property
    def answers_sha256(self) -> str:
        """Of what counts as right for the rows to ask."""
        return hash_answers(record.answers for record in self.records)

    @property
    def kind(self) -> DataKind:
        """Whether answers to these rows are written or picked."""
        return "choice" if self.records[0].choices else "open"

    def leading_metric(self, asked: Sequence[str]) -> str:
        """The first of the metrics asked for that these rows have, else the one that suits them best."""
        found = next((name for name in asked if (name in CHOICE_METRICS) == (self.kind == "choice")), None)
        if found is not None:
            return found
        if self.kind == "choice":
            return CHOICE_METRICS[0]
        return "contains" if self.path in BUILTIN_DATA_SETS else OPEN_METRICS[0]  # nobody trained it to be brief

    def is_training_data_of(self, subject: Subject) -> bool:
        """Whether these are the very rows that the adapter was trained on, or those and what its run held out."""
        trained = _data_sha256(subject, "train")
        if trained is None or self.held_out or subject.run is None:
            return trained is not None and trained == self.sha256
        taught, _ = split_by_question(self.every, subject.run.data.valid_share, subject.run.train.seed)
        return trained in (self.sha256, records_sha256(taught))

    def asked_in(self, taught: frozenset[str] | None) -> int | None:
        """How many of the rows to ask `taught_questions` holds; None where these are not known."""
        return None if taught is None else sum(record.asked_keys[-1] in taught for record in self.records)


def taught_questions(subject: Subject) -> frozenset[str] | None:
    """Keys of all questions that the adapter's run trained; None where its rows are not here as they were."""
    trained = _data_sha256(subject, "train")
    if trained is None or subject.run is None:
        return None
    data = subject.run.data
    try:
        if data.train not in BUILTIN_DATA_SETS and not typed_path(data.train).exists():
            return None  # a data set of the Hub: nothing is fetched for a remark
        every = read_records(data.train)
    except MlxLoraError:
        return None
    taught, _ = split_by_question(every, data.valid_share, subject.run.train.seed)
    rows = next((rows for rows in (every, taught) if records_sha256(rows) == trained), None)
    return None if rows is None else frozenset(key for row in rows for key in row.asked_keys)


@dataclass(frozen=True)
class Chosen:
    """A data set to read: its path and split; with `held_out` only what a run with this share and seed held out."""

    path: str
    split: str
    held_out: tuple[float, int] | None = None
    held_sha256: str | None = None  # of the rows that the run held out, where its adapter says


def distinct(subjects: Sequence[Subject]) -> list[Subject]:
    """The adapters without those whose folder an earlier one has, under another name or the same."""
    found: dict[Path, Subject] = {}
    for subject in subjects:
        found.setdefault(subject.folder.resolve(), subject)
    return list(found.values())


def choose_sources(subjects: Sequence[Subject], data: Sequence[str]) -> list[Chosen]:
    """Every data set to ask: those named, else what the adapters' runs had to test or validate with.

    Raises: DataError where there are none.
    """
    remedy = "name the questions with --data FILE"
    if data:
        return [Chosen(source, "test") for source in dict.fromkeys(data)]
    if not subjects:
        raise DataError("a base alone: what shall it be asked?", remedy)
    found: dict[Chosen, None] = {}
    for subject in subjects:
        if subject.run is None:
            raise DataError(f"{subject.label}: no run.yaml says what to ask", remedy)
        chosen = _untrained_rows(subject.run, _data_sha256(subject, "valid"))
        if chosen is None:
            fact = "data.test and data.valid are null, and data.valid_share is 0"
            raise DataError(f"{subject.folder / 'run.yaml'}: {fact}", remedy)
        found[chosen] = None
    return list(found)


def _untrained_rows(run: RunConfig, held_sha256: str | None) -> Chosen | None:
    """What load_splits had: test rows before validation rows, named before found, found before held out."""
    data = run.data
    for split, named in (("test", data.test), ("valid", data.valid)):
        if named:
            return Chosen(named, split)
        # Where there are rows to fall back on, training data that has gone is no reason to stop.
        wanted = data.valid is None or typed_path(data.train).is_dir()
        if wanted and read_split_if_present(data.train, split) is not None:
            return Chosen(data.train, split)
    if data.valid_share == 0:
        return None
    return Chosen(data.train, "train", (data.valid_share, run.train.seed), held_sha256)


def _data_sha256(subject: Subject, split: str) -> str | None:
    hashes = subject.adapter.facts.get("data_sha256")
    return hashes.get(split) if isinstance(hashes, dict) else None


def read_sources(chosen: Sequence[Chosen], limit: int | None) -> list[Source]:
    """Read all data sets; those of one name are told apart by the beginning of their hash. Raises: DataError.

    The hash is of what is asked: where rows differ in accepted answers alone, the names get a number.
    """
    sources = [read_source(one, limit) for one in chosen]
    names = Counter(source.name for source in sources)
    sources = [
        replace(source, name=f"{source.name}-{source.sha256[:8]}") if names[source.name] > 1 else source
        for source in sources
    ]
    taken = Counter[str]()
    for place, source in enumerate(sources):
        taken[source.name] += 1
        if taken[source.name] > 1:
            sources[place] = replace(source, name=f"{source.name}-{taken[source.name]}")
    return sources


def read_source(chosen: Chosen, limit: int | None) -> Source:
    """Read a data set; at most `limit` rows of it are asked, evenly spread. Raises: DataError."""
    remedy = "name the questions with --data FILE"
    records = read_records(chosen.path, chosen.split)
    name = data_name(chosen.path, chosen.split)
    if chosen.held_out is not None:
        _, records = split_by_question(records, *chosen.held_out)
        name += "-held-out"
        if not records:
            raise DataError(f"{chosen.path}: no row was held out", remedy)
        if chosen.held_sha256 not in (None, records_sha256(records)):
            fact = "has changed since the run, or is split otherwise by this version: what it held out is not known"
            raise DataError(f"{chosen.path}: {fact}", remedy)
    _refuse_mixture(records)
    rows, held_out = spread_rows(records, limit), chosen.held_out is not None
    require_askable(rows)  # now: later, what another data set had answered by then would be lost
    return Source(name, chosen.path, records_sha256(records), len(records), rows, held_out, records)


def _refuse_mixture(records: Sequence[Record]) -> None:
    other = next((record for record in records if bool(record.choices) != bool(records[0].choices)), None)
    if other is not None:
        with_choices, without = (other, records[0]) if other.choices else (records[0], other)
        fact = f'{with_choices.place} has "choices", {without.place} has none'
        raise DataError(fact, "written and picked answers have no metric in common: make two files of them")


def data_name(source: str, split: str) -> str:
    """A short name: the file's, with its folder's before it where many files are called so ("modern-test")."""
    if source in BUILTIN_DATA_SETS:
        return source
    path = Path(source).expanduser()
    if not path.suffix:
        return f"{path.resolve().name}-{split}"
    parent = path.resolve().parent.name
    return f"{parent}-{path.stem}" if path.stem.lower() in _COMMON_NAMES and parent else path.stem


def spread_rows(records: Sequence[Record], limit: int | None) -> list[Record]:
    """At most `limit` of the records, evenly spread over the file: neighbours often ask of the same thing."""
    if limit is None or limit >= len(records):
        return list(records)
    return [records[place * len(records) // limit] for place in range(limit)]
