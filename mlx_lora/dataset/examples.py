"""Records to examples: tokens, loss masks and the length limit. Knows nothing of files, batches or MLX."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mlx_lora.config import DataSettings
from mlx_lora.dataset.record import Record
from mlx_lora.dataset.records import joined_faults
from mlx_lora.dataset.rendering import ChatTokenizer, has_template, prompt_messages, record_prompt, render_prompt
from mlx_lora.dataset.spans import TOOLS_UNWRITTEN, Rendering, render_conversation, render_plain_row, render_text_row
from mlx_lora.errors import DataError

__all__ = [
    "ChatTokenizer",
    "Example",
    "ExampleSet",
    "Expected",
    "build_example",
    "build_examples",
    "prompt_messages",
    "record_prompt",
    "render_prompt",
]

SHORTENED = "the prompt was shortened from the left"
_LIMIT_HINT = "raise data.max_seq_length, or set data.truncation to drop or prompt"


@dataclass(frozen=True)
class Expected:
    """Next-token probabilities to train towards, one line for each of A trained tokens; the rest is other tokens'."""

    tokens: np.ndarray  # (A, K) int32
    shares: np.ndarray  # (A, K) float32; a line adds up to at most 1


@dataclass(frozen=True)
class Example:
    """A row ready to be trained on."""

    tokens: np.ndarray  # (T,) int32
    loss_mask: np.ndarray  # (T,) bool: token t is a trained target; loss_mask[0] is always False
    place: str
    note: str | None
    full_length: int = 0  # tokens before the prompt was shortened
    weight: float = 1.0  # of each of its trained tokens in the loss
    expected: Expected | None = None  # what the base expects at the trained tokens; None trains the tokens themselves

    @property
    def shortened(self) -> bool:
        """Whether tokens were cut off its prompt."""
        return self.full_length > len(self.tokens)


@dataclass(frozen=True)
class ExampleSet:
    """The examples of one split, and what became of the rows that did not fit."""

    examples: list[Example]
    dropped: int
    shortened: int
    notes: list[str]  # each with its count and first place
    full_lengths: list[int] = field(default_factory=list)  # tokens of every row that renders, before any limit
    faults: list[str] = field(default_factory=list)  # "file:line: what", with stop_on_fault=False only
    hints: list[str] = field(default_factory=list)  # the remedies of the faults


def build_examples(
    records: Sequence[Record], tokenizer: ChatTokenizer, settings: DataSettings, *, stop_on_fault: bool = True
) -> ExampleSet:
    """The examples of all rows that stay, in order; with `stop_on_fault=False` faulty rows are listed and left out.

    Raises: DataError with up to ten faults, each with its place.
    """
    built: list[Example] = []
    lengths: list[int] = []
    faults: list[DataError] = []
    limit = settings.max_seq_length
    for record in records:
        try:
            whole = _whole_example(record, tokenizer, settings)
            lengths.append(whole[0].full_length)
            example = _within_limit(*whole, tokenizer, settings)
        except DataError as fault:
            faults.append(fault)
            continue
        if example is not None:
            built.append(example)
    if faults and stop_on_fault:
        raise DataError(joined_faults([fault.message for fault in faults]), faults[0].hint)
    return ExampleSet(
        examples=built,
        dropped=sum(length > limit for length in lengths) if settings.truncation == "drop" else 0,
        shortened=sum(example.shortened for example in built),
        notes=_counted_notes(built),
        full_lengths=lengths,
        faults=[fault.message for fault in faults],
        hints=list(dict.fromkeys(fault.hint for fault in faults if fault.hint)),
    )


def build_example(record: Record, tokenizer: ChatTokenizer, settings: DataSettings) -> Example | None:
    """The example of one row; None where it is over the limit and data.truncation is drop.

    Raises: DataError with the row's place: the template refuses it, it teaches nothing, or it is too long.
    """
    return _within_limit(*_whole_example(record, tokenizer, settings), tokenizer, settings)


def _whole_example(
    record: Record, tokenizer: ChatTokenizer, settings: DataSettings
) -> tuple[Example, list[tuple[int, int]]]:
    """The example before any limit, and [start, stop) of its answers."""
    try:
        rendering = _render(record, tokenizer, settings)
    except DataError as error:
        raise DataError(f"{record.place}: {error.message}", error.hint) from error
    mask = np.zeros(len(rendering.tokens), dtype=bool)
    for start, stop in rendering.spans:
        mask[start:stop] = True
    if settings.train_on == "all":
        mask[:] = True
    mask[0] = False
    if not mask.any():
        raise DataError(f"{record.place}: no token of this row would be trained", "give it an answer")
    # What follows the last trained token (a newline, mostly) cannot change the loss.
    length = int(np.flatnonzero(mask)[-1]) + 1
    tokens = np.array(rendering.tokens[:length], dtype=np.int32)
    note = "; ".join(rendering.notes) or None
    return Example(tokens, mask[:length], record.place, note, length), rendering.spans


def _render(record: Record, tokenizer: ChatTokenizer, settings: DataSettings) -> Rendering:
    if record.text is not None:
        return render_text_row(record.text, tokenizer)
    if has_template(tokenizer, settings):
        return render_conversation(record.messages, record.tools, tokenizer, settings)
    rendering = render_plain_row(record.messages, record.format, tokenizer, settings)
    return replace(rendering, notes=(*rendering.notes, TOOLS_UNWRITTEN)) if record.tools else rendering


def _within_limit(
    example: Example, spans: Sequence[tuple[int, int]], tokenizer: ChatTokenizer, settings: DataSettings
) -> Example | None:
    answer_start = spans[-1][0]
    limit, length = settings.max_seq_length, len(example.tokens)
    if length <= limit:
        return example
    if settings.truncation == "drop":
        return None
    if settings.truncation == "error":
        raise DataError(f"{example.place}: {length} tokens, but data.max_seq_length is {limit}", _LIMIT_HINT)
    bos = int(example.tokens[0] == tokenizer.bos_id)
    # A target needs a token before it: BOS, or else the last one of the prompt.
    needed = length - answer_start + 1
    if answer_start == 0 or needed > limit:
        raise DataError(
            f"{example.place}: the answer alone has {length - answer_start} tokens, but data.max_seq_length is {limit}",
            "raise data.max_seq_length, set data.truncation to drop, or shorten the answer",
        )
    cut = bos + length - limit
    mask = example.loss_mask.copy()
    for start, stop in spans[:-1]:
        if start < cut < stop and settings.train_on == "completion":
            mask[cut:stop] = False  # half an answer is no answer: its rest is context only
    mask = np.concatenate([mask[:bos], mask[cut:]])
    mask[0] = False
    tokens = np.concatenate([example.tokens[:bos], example.tokens[cut:]])
    note = f"{example.note}; {SHORTENED}" if example.note else SHORTENED
    return Example(tokens, mask, example.place, note, example.full_length)


def _counted_notes(examples: Sequence[Example]) -> list[str]:
    places: dict[str, list[str]] = {}
    for example in examples:
        for note in example.note.split("; ") if example.note else ():
            places.setdefault(note, []).append(example.place)
    return [
        f"{note} ({len(found)} {'row' if len(found) == 1 else 'rows'}, first {found[0]})"
        for note, found in places.items()
    ]
