"""Where the assistant's turns lie in the tokens of a rendered conversation. Knows nothing of files, limits or MLX.

The conversation is rendered once, whole; its turns are then found in that text. Templates rewrite earlier turns (Qwen 3
drops their thinking), so the lengths of shorter renders are never taken for places in the whole one.
Source of the trouble: NVIDIA-NeMo/Automodel#3024, OpenRLHF/OpenRLHF#1227, THUDM/slime#330.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

from mlx_lora.config import DataSettings
from mlx_lora.dataset.record import UNTRAINED, Message, is_trained
from mlx_lora.dataset.rendering import (
    ChatTokenizer,
    encode_plain,
    encode_rendered,
    plain_answer,
    plain_prompt,
    read_template,
    render_text,
    with_system_prompt,
)
from mlx_lora.errors import DataError

REWRITTEN = "the template writes an answer otherwise than after its prompt: trained from the longest common prefix"
MERGED = "the answer's first token begins in the prompt: trained from the longest common prefix"
NO_END = "the template writes no end token after an earlier answer: that turn is trained without one"
OTHER_WHEN_LAST = "the template writes earlier answers otherwise than a last one, as when thinking is dropped"
END_ADDED = "the template writes no end token after the last answer: one was added"
EMBEDDED_END = "an answer spells an end token itself: what follows it is not trained"
LAST_ONLY = "earlier answers cannot be told apart in what the template writes: only the last one is trained"
TOOLS_IGNORED = "the template does not write the tools"
TOOLS_UNWRITTEN = "without a chat template the tools are not written"
CALLS_IGNORED = "the template does not write the tool calls"
PROMPT_IGNORED = "the template does not write data.system_prompt"
MESSAGE_IGNORED = "the template does not write the content of a {role} message"
DATED = (
    "the template writes today's date, so that a run cannot be resumed on another day: write the date into a copy "
    "of it for data.chat_template, or give date_string in data.chat_template_args where it takes that"
)
THINKING_IGNORED = "the template does not write the {key} of an answer"

# Private-use characters around a message show where the template puts it.
_CLOCK = "strftime_now"  # what transformers calls it for templates
_OPEN, _CLOSE = "\ue000", "\ue001"
_THINKING = ("reasoning_content", "reasoning", "thinking")  # keys beside the content, by which data sets hold thinking


@dataclass(frozen=True)
class Rendering:
    """A whole row in tokens."""

    tokens: list[int]
    spans: list[tuple[int, int]]  # [start, stop) of each trained turn with its end token, in order
    notes: tuple[str, ...]


def render_text_row(text: str, tokenizer: ChatTokenizer) -> Rendering:
    """A plain text: BOS where the tokenizer puts one, all of the text, one end token."""
    tokens = encode_plain(text, tokenizer)
    if not tokens or tokens[-1] not in tokenizer.eos_ids:
        tokens.append(tokenizer.eos_id)
    return Rendering(tokens, [(int(tokens[0] == tokenizer.bos_id), len(tokens))], ())


def render_plain_row(
    messages: Sequence[Message], row_format: str, tokenizer: ChatTokenizer, settings: DataSettings
) -> Rendering:
    """A single exchange without a chat template. Raises: DataError for rows of messages."""
    prompt = plain_prompt(with_system_prompt(messages[:-1], settings), row_format)
    answer = str(messages[-1]["content"])
    tokens = encode_plain(prompt + plain_answer(answer, row_format), tokenizer)
    opening = encode_plain(prompt, tokenizer)
    start = common_prefix(opening, tokens)
    notes = [] if start == len(opening) else [MERGED]
    end = next((place for place in range(start, len(tokens)) if tokens[place] in tokenizer.eos_ids), None)
    if end is None:
        end = len(tokens)
        tokens.append(tokenizer.eos_id)
    elif end + 1 < len(tokens):
        notes.append(EMBEDDED_END)
    return Rendering(tokens, [(start, end + 1)], tuple(notes))


def render_conversation(
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    tokenizer: ChatTokenizer,
    settings: DataSettings,
) -> Rendering:
    """A conversation that ends with an answer, through the chat template and with the settings' system prompt.

    Raises: DataError when the template refuses it, or writes nothing for one of its answers; when a turn is not to be
    trained, and all tokens are.
    """
    untrained = next((number for number, message in enumerate(messages, 1) if message.get(UNTRAINED) is True), None)
    if untrained is not None and settings.train_on == "all":
        fact = f"message {untrained} is marked as not to be trained, and data.train_on: all trains all tokens"
        raise DataError(fact, "take data.train_on: completion, or remove the mark")
    conversation = _Conversation(messages, tools, tokenizer, settings)
    spans = conversation.last_span() if settings.train_on == "all" else conversation.all_spans()
    return Rendering(conversation.tokens, spans, tuple(dict.fromkeys(conversation.notes)))


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of equal tokens at the beginning of both."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


class _Conversation:
    """One conversation, rendered whole (`text`, `tokens`), and the search for its turns."""

    def __init__(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        tokenizer: ChatTokenizer,
        settings: DataSettings,
    ) -> None:
        self.messages = with_system_prompt(messages, settings)
        self.added = len(self.messages) - len(messages)  # 1 where the settings' system prompt came first
        self.tools = list(tools)
        self.tokenizer = tokenizer
        self.settings = settings
        self.text = self._render(self.messages, prompt=False)
        self.tokens = self._encode(self.text)
        self.notes: list[str] = []
        self._note_what_is_left_out()
        self._note_a_date()

    def all_spans(self) -> list[tuple[int, int]]:
        """Every trained turn; only the last one, with a note, where an earlier one cannot be told apart."""
        turns = [number for number, message in enumerate(self.messages) if is_trained(message)]
        earlier = [self._span(number) for number in turns[:-1]]
        last = self._last_span()
        spans = [span for span in earlier if span is not None] + [last]
        in_order = all(one[1] <= two[0] for one, two in pairwise(spans))
        if None in earlier or not in_order:
            self.notes.append(LAST_ONLY)
            spans = [last]
        return spans

    def last_span(self) -> list[tuple[int, int]]:
        """The last turn alone: where all tokens are trained, only its end token matters."""
        return [self._last_span()]

    def _last_span(self) -> tuple[int, int]:
        number = len(self.messages) - 1
        start = self._start(number, self._render(self.messages[:number], prompt=True))
        if start is None:
            raise DataError(
                "the answer cannot be found in what the chat template writes",
                "the template rewrites the whole conversation for an answer: set data.chat_template",
            )
        end = self._first_end(start, len(self.tokens))
        if end is None:
            self.notes.append(END_ADDED)
            end = len(self.tokens)
            self.tokens.append(self.tokenizer.eos_id)
        self._check_answer(number, start, end)
        return start, end + 1

    def _span(self, number: int) -> tuple[int, int] | None:
        """[start, stop) of an earlier turn, None where it cannot be located exactly."""
        start = self._start(number, self._try_render(self.messages[:number], prompt=True))
        stop = None if start is None else self._stop(number, start)
        if start is None or stop is None:
            return None
        self._check_answer(number, start, stop)
        return start, stop

    def _start(self, number: int, prompt: str | None) -> int | None:
        """First token of the answer `number`: where `prompt`, the render of what is before it, ends."""
        if prompt is not None and self.text.startswith(prompt):
            opening = self._encode(prompt)
            start = common_prefix(opening, self.tokens)
            if start < len(opening):
                self.notes.append(MERGED)
            return start
        self.notes.append(REWRITTEN)
        content = self._content_place(number)
        written = None if content is None else self._token_at(content[0])
        before = self._try_render(self.messages[:number], prompt=False)
        if prompt is not None and before is not None and self.text.startswith(before):
            # The turns before are as they were: only the beginning of this answer differs from its prompt.
            shared = common_prefix(self._encode(prompt), self.tokens)
            return shared if written is None else min(shared, written)
        return written

    def _stop(self, number: int, start: int) -> int | None:
        """Place after the end token of the earlier answer `number`."""
        after = self._try_render(self.messages[: number + 1], prompt=False)
        if after is not None and self.text.startswith(after):
            limit = without_end = self._token_at(len(after))
        else:
            own, following = self._content_place(number), self._content_place(number + 1)
            if own is None or following is None:
                return None
            limit, without_end = self._token_at(following[0]), self._token_at(own[1])
        end = self._first_end(start, limit)
        if end is not None:
            if after is not None and common_prefix(self._encode(after), self.tokens) <= end:
                self.notes.append(OTHER_WHEN_LAST)
            return end + 1
        self.notes.append(NO_END)
        return without_end if without_end > start else None

    def _first_end(self, start: int, limit: int) -> int | None:
        return next((place for place in range(start, limit) if self.tokens[place] in self.tokenizer.eos_ids), None)

    def _content_place(self, number: int) -> tuple[int, int] | None:
        """Characters [start, stop) of message `number` in the whole text, found by marking it; None if marks get lost.

        Of an answer with a think block, the part after the block.
        """
        content = str(self.messages[number]["content"])
        visible = content.rpartition("</think>")[2].lstrip()
        marked = content[: len(content) - len(visible)] + _OPEN + visible + _CLOSE
        messages = [*self.messages]
        messages[number] = {**messages[number], "content": marked}
        text = self._try_render(messages, prompt=False)
        if text is None or text.count(_OPEN) != 1 or text.count(_CLOSE) != 1:
            return None
        before, _, rest = text.partition(_OPEN)
        inside, _, after = rest.partition(_CLOSE)
        start, stop = len(before), len(self.text) - len(after)
        unmoved = self.text.startswith(before) and self.text.endswith(after) and start <= stop
        # Templates trim: inside the marks the spaces stay, in the text they are gone.
        return (start, stop) if unmoved and self.text[start:stop].strip() == inside.strip() else None

    def _check_answer(self, number: int, start: int, stop: int) -> None:
        words = [token for token in self.tokens[start:stop] if token not in self.tokenizer.eos_ids]
        if not self.tokenizer.decode(words).strip():
            raise DataError(
                f"the chat template writes nothing for message {number + 1 - self.added} (assistant)",
                "it would teach an empty answer: this template may not know tool calls, or drops thinking",
            )
        content = str(self.messages[number]["content"])
        spelled = [self.tokenizer.decode([end]) for end in self.tokenizer.eos_ids]
        if any(end and end in content for end in spelled):
            self.notes.append(EMBEDDED_END)

    def _note_a_date(self) -> None:
        file = self.settings.chat_template
        if _CLOCK not in str(self.tokenizer.chat_template if file is None else read_template(file)):
            return
        # In place of the function a text, which cannot be called: a template that asks for the day fails.
        stopped = {**self.settings.chat_template_args, _CLOCK: ""}
        settings = self.settings.model_copy(update={"chat_template_args": stopped})
        try:
            render_text(self.messages, self.tokenizer, settings, self.tools, prompt=False)
        except DataError:
            self.notes.append(DATED)

    def _note_what_is_left_out(self) -> None:
        if self.tools and self.text == render_text(self.messages, self.tokenizer, self.settings, prompt=False):
            self.notes.append(TOOLS_IGNORED)
        if any("tool_calls" in message for message in self.messages):
            silent = [{key: message[key] for key in message if key != "tool_calls"} for message in self.messages]
            if self._try_render(silent, prompt=False) == self.text:
                self.notes.append(CALLS_IGNORED)
        for number, message in enumerate(self.messages):
            if self._ignores(number, "content"):
                own = number >= self.added
                self.notes.append(MESSAGE_IGNORED.format(role=message["role"]) if own else PROMPT_IGNORED)
        # Of earlier answers templates may drop the thinking, which is no news: see OTHER_WHEN_LAST.
        last = len(self.messages) - 1
        self.notes += [THINKING_IGNORED.format(key=key) for key in _THINKING if self._ignores(last, key)]

    def _ignores(self, number: int, key: str) -> bool:
        """Whether the template writes the same whatever text stands under `key` of message `number`."""
        value = self.messages[number].get(key)
        if not isinstance(value, str) or not value.strip() or value.strip() in self.text:
            return False
        messages = [*self.messages]
        messages[number] = {**messages[number], key: value + _CLOSE}
        return self._try_render(messages, prompt=False) == self.text

    def _render(self, messages: Sequence[Message], *, prompt: bool) -> str:
        return render_text(messages, self.tokenizer, self.settings, self.tools, prompt=prompt)

    def _try_render(self, messages: Sequence[Message], *, prompt: bool) -> str | None:
        """A render of something else than the row; None where the template refuses it: that alone is no fault."""
        try:
            return self._render(messages, prompt=prompt)
        except DataError:
            return None

    def _encode(self, text: str) -> list[int]:
        return encode_rendered(text, self.tokenizer)

    def _token_at(self, place: int) -> int:
        """Number of whole tokens before character `place` of the text."""
        return common_prefix(self._encode(self.text[:place]), self.tokens)
