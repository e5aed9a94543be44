"""Messages to text and tokens: what the room needs of a tokenizer, and the one function that renders prompts.
Knows nothing of rows, losses or batches.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from mlx_lora.config import DataSettings
from mlx_lora.dataset.record import UNTRAINED, Message, Record
from mlx_lora.errors import ConfigError, DataError, MlxLoraError
from mlx_lora.files import typed_path

_REST = "…"  # stands for what the user goes on to say
NO_TEMPLATE_HINT = "set data.chat_template to a .jinja file, or take an instruction-tuned model"


class ChatTokenizer(Protocol):
    """What the room needs of a tokenizer; model.tokenizer.Tokenizer satisfies it.

    `adds_bos: bool` may be there too: whether texts outside any template begin with BOS.
    """

    chat_template: str | None
    eos_ids: frozenset[int]
    eos_id: int
    bos_id: int | None

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool,
        template_args: Mapping[str, Any],
        chat_template: str | None = None,
    ) -> str:
        """The conversation as text; `chat_template` replaces the tokenizer's own. Raises what the template raises."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, none added."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special ones spelled out."""
        ...


def render_prompt(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    settings: DataSettings,
    tools: Sequence[dict[str, Any]] = (),
    *,
    row_format: str = "question/answer",
) -> list[int]:
    """Tokens up to where the answer to `messages` starts: the same for training, eval and chat.

    Adds the system prompt of the settings. `row_format` (Record.format) matters only without a chat template.
    Raises: DataError in the template's own words; DataError where there is nothing to ask.
    """
    if not messages:
        raise DataError("a prompt needs at least one message", "rows of plain text have no prompt")
    conversation = with_system_prompt(messages, settings)
    if has_template(tokenizer, settings):
        text = render_text(conversation, tokenizer, settings, tools, prompt=True)
        tokens = encode_rendered(text, tokenizer)
    else:
        tokens = encode_plain(plain_prompt(conversation, row_format), tokenizer)
    if not tokens:
        raise DataError("what the chat template writes for the question has no tokens", NO_TEMPLATE_HINT)
    return tokens


def render_beginning(words: str, tokenizer: ChatTokenizer, settings: DataSettings) -> tuple[list[int], str]:
    """Tokens of a conversation in which a user has just begun to say `words`, and what ends the user's turn.

    No tokens where the template changes the words; "" where white space alone ends the turn. Raises: DataError in the
    template's own words.
    """
    begun: list[Message] = [{"role": "user", "content": f"{words} {_REST}"}]
    conversation, templated = with_system_prompt(begun, settings), has_template(tokenizer, settings)
    if templated:
        text = render_text(conversation, tokenizer, settings, prompt=True)
    else:
        text = plain_prompt(conversation, "question/answer")
    before, found, after = text.partition(f"{words} {_REST}")
    if not found:
        return [], ""
    closing = "".join(after.split()[:1])
    return (encode_rendered if templated else encode_plain)(before + words, tokenizer), closing


def record_prompt(record: Record, tokenizer: ChatTokenizer, settings: DataSettings) -> list[int]:
    """The prompt of a record's last answer, with its tools and in its format. Raises: DataError with its place."""
    try:
        messages = prompt_messages(record)
        return render_prompt(messages, tokenizer, settings, record.tools, row_format=record.format)
    except DataError as error:
        raise DataError(f"{record.place}: {error.message}", error.hint) from error


def prompt_messages(record: Record) -> list[Message]:
    """The messages before the last answer, without the settings' system prompt, which render_prompt adds."""
    return list(record.messages[:-1])


def with_system_prompt(messages: Sequence[Message], settings: DataSettings) -> list[Message]:
    """`messages` with the settings' system prompt first, unless they begin with a system message of their own."""
    own = bool(messages) and messages[0]["role"] in ("system", "developer")
    if settings.system_prompt is None or own:
        return list(messages)
    return [{"role": "system", "content": settings.system_prompt}, *messages]


def has_template(tokenizer: ChatTokenizer, settings: DataSettings) -> bool:
    """Whether conversations are rendered by a chat template; without one only single exchanges can be."""
    return settings.chat_template is not None or tokenizer.chat_template is not None


def render_text(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    settings: DataSettings,
    tools: Sequence[dict[str, Any]] = (),
    *,
    prompt: bool,
) -> str:
    """What the chat template writes for `messages`, with the beginning of an answer where `prompt`.

    Raises: DataError in the template's own words; ConfigError when data.chat_template cannot be read.
    """
    replaced = None if settings.chat_template is None else read_template(settings.chat_template)
    shown = [{key: value for key, value in message.items() if key != UNTRAINED} for message in messages]
    try:
        return tokenizer.render_chat(
            shown,
            tools=list(tools) or None,
            add_generation_prompt=prompt,
            template_args=settings.chat_template_args,
            chat_template=replaced,
        )
    except MlxLoraError:
        raise
    except Exception as error:  # a template is a program from outside: besides its own exceptions it can raise any
        words = str(error).strip() or type(error).__name__
        refusal = f"the chat template refuses the conversation: {words}"
        raise DataError(refusal, _refusal_hint(words, settings)) from error


def read_template(path: str) -> str:
    """The text of the template file at `path`. Raises: ConfigError."""
    try:
        file = typed_path(path)
        return _cached_text(file, file.stat().st_mtime_ns)
    except MlxLoraError as error:
        raise ConfigError(f"data.chat_template: {error.message}", "give the path of a .jinja file") from error
    except OSError as error:
        raise ConfigError(f"data.chat_template: {path}: {error.strerror}", "give the path of a .jinja file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.chat_template: {path}: not UTF-8", "give the path of a .jinja file") from error


@lru_cache(maxsize=8)
def _cached_text(file: Path, modified: int) -> str:
    return file.read_text(encoding="utf-8-sig")


def _refusal_hint(words: str, settings: DataSettings) -> str:
    if "system" not in words.lower():
        return "these are the template's own words: change the row, or set data.chat_template"
    if settings.system_prompt is not None:
        return "this template takes no system message: leave data.system_prompt out, or set data.chat_template"
    return "this template takes no system message: put it into the first user message, or set data.chat_template"


def encode_rendered(text: str, tokenizer: ChatTokenizer) -> list[int]:
    """Tokens of a text that a template wrote: BOS is there if the template wrote it, and never twice."""
    tokens = tokenizer.encode(text)
    while tokenizer.bos_id is not None and tokens[:2] == [tokenizer.bos_id] * 2:
        del tokens[0]
    return tokens


def encode_plain(text: str, tokenizer: ChatTokenizer) -> list[int]:
    """Tokens of a text outside any template: with one BOS where the tokenizer would put it."""
    tokens = encode_rendered(text, tokenizer)
    wanted = tokenizer.bos_id is not None and getattr(tokenizer, "adds_bos", False)
    if wanted and tokenizer.bos_id is not None and tokens[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *tokens]
    return tokens


def plain_prompt(messages: Sequence[Message], row_format: str) -> str:
    """The prompt of a single exchange without a chat template; earlier exchanges are possible for questions only.

    Raises: DataError for the conversation formats.
    """
    instructions = "".join(f"{message['content']}\n\n" for message in messages if message["role"] == "system")
    turns = [message for message in messages if message["role"] != "system"]
    if row_format == "question/answer":
        lines = [_PLAIN_TURNS.get(turn["role"], "{}").format(_plain_text(turn)) for turn in turns]
        return instructions + "".join(lines) + "Answer:"
    if row_format in ("prompt/completion", "alpaca") and len(turns) == 1:
        asked = str(turns[0]["content"])
        return instructions + (asked if row_format == "prompt/completion" else _ALPACA.format(asked))
    if row_format in ("prompt/completion", "alpaca"):
        raise DataError(f"without a chat template a row of {row_format} asks once", "begin anew for the next question")
    raise DataError("the tokenizer has no chat template, which rows of messages need", NO_TEMPLATE_HINT)


def _plain_text(turn: Message) -> Any:
    # An answer that a byte-level model gave begins with its space (see plain_answer), and its turn has one already.
    content = turn["content"]
    return content.lstrip(" ") if turn["role"] == "assistant" and isinstance(content, str) else content


def plain_answer(answer: str, row_format: str) -> str:
    """The answer as it follows plain_prompt; its space belongs to its first word, as byte-level tokenizers have it."""
    return f" {answer}" if row_format == "question/answer" else answer


_PLAIN_TURNS = {"user": "Question: {}\n", "assistant": "Answer: {}\n\n"}
_ALPACA = "### Instruction:\n{}\n\n### Response:\n"
