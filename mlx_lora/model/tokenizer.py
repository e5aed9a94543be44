"""Text to tokens and back: chat templates, end tokens, streaming. Knows nothing of rows, losses or weights."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mlx_lora.errors import ConfigError, ModelError
from mlx_lora.model.template_limits import TemplateLimitError, check_length, template_limits

_PROBE = "mlxlora"  # an answer that no template can contain by itself


class Tokenizer:
    """One base's tokenizer: mlx_lm's TokenizerWrapper (`wrapper`) with nothing added behind the caller's back.

    Satisfies dataset.examples.ChatTokenizer. `eos_ids` holds every token that ends an answer, `eos_id` the one that the
    chat template writes after an assistant turn.
    """

    def __init__(
        self,
        wrapper: Any,
        *,
        end_tokens: Sequence[int] = (),
        chat_template: str | None = None,
        place: str = "the model's chat template",
    ) -> None:
        """`end_tokens`: those of config.json and generation_config.json; `chat_template` replaces the tokenizer's.

        place: where the template stands, for its faults.
        """
        self.wrapper = wrapper
        self._plain = wrapper._tokenizer  # the transformers tokenizer: the wrapper's own methods add arguments
        own = getattr(self._plain, "chat_template", None)
        self._templates: dict[str, str] = own if isinstance(own, dict) else {}
        if not all(isinstance(each, str) for each in self._templates.values()) or not isinstance(
            own, str | dict | None
        ):
            raise ModelError("its chat template is no text", "mend chat_template in its tokenizer_config.json")
        self._replaced = chat_template is not None
        self._place = place
        self._fault: ModelError | None = None  # of the template, whatever the conversation
        self.chat_template: str | None = own if isinstance(own, str) else self._templates.get("default")
        if chat_template is not None:
            self.chat_template = chat_template
        self.bos_id: int | None = self._plain.bos_token_id
        ends = {int(token) for token in (*end_tokens, *wrapper.eos_token_ids)}
        turn_end = self._find_turn_end(ends)
        if turn_end is None and self._plain.eos_token_id is None and not ends:
            raise ModelError(
                "the tokenizer has no end token, so answers would never stop",
                "set eos_token in its tokenizer_config.json, or eos_token_id in its generation_config.json",
            )
        fallback = self._plain.eos_token_id
        self.eos_id: int = turn_end if turn_end is not None else (min(ends) if fallback is None else int(fallback))
        self.eos_ids: frozenset[int] = frozenset(ends | {self.eos_id})
        wrapper.eos_token_ids = set(self.eos_ids)  # mlx_lm's generation stops where ours does

    def with_chat_template(self, chat_template: str | None, place: str) -> "Tokenizer":
        """The same tokenizer with another template, and the end token which that one writes; itself for None.

        place: where the template stands. Raises: ModelError for a template that no conversation can be written with.
        """
        if chat_template is None:
            return self
        before = set(self.wrapper.eos_token_ids)
        try:
            other = Tokenizer(self.wrapper, end_tokens=sorted(self.eos_ids), chat_template=chat_template, place=place)
        finally:  # both share the wrapper, and the end token of one template is none of the next one's
            self.wrapper.eos_token_ids = before
        if other._fault is not None:
            raise other._fault
        return other

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the transformers tokenizer puts BOS before a text by itself (`encode` here never does)."""
        return self.bos_id is not None and bool(list(self._plain.encode("a"))[:1] == [self.bos_id])

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones included; the model's embedding may have more rows."""
        return len(self._plain)

    @property
    def plain_vocabulary_size(self) -> int:
        """Number of tokens without added ones, for each of which the model needs a row."""
        return int(self._plain.vocab_size)

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`; special tokens only where the text spells them."""
        return [int(token) for token in self._plain.encode(text, add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special ones spelled out, spaces as they are."""
        return str(
            self._plain.decode(
                [int(token) for token in tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def spell(self, token: int, after: int | None = None) -> str:
        """Text of `token` where it follows token `after`: SentencePiece writes a first word without its space."""
        alone = self.decode([token])
        if after is None or "\ufffd" in alone:
            return alone
        before, both = self.decode([after]), self.decode([after, token])
        return both[len(before) :] if both.startswith(before) else alone

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool,
        template_args: Mapping[str, Any],
        chat_template: str | None = None,
    ) -> str:
        """The conversation as text, by `chat_template` or else the tokenizer's, in transformers' Jinja sandbox.

        The template sees `template_args` and nothing else: mlx_lm's wrapper would add enable_thinking=True.
        Raises: jinja2.TemplateError where it refuses this conversation; ModelError for a template that can write none:
        there is none, a syntax error, a way out of the sandbox, no end; ConfigError for arguments that no template has.
        """
        template = self.chat_template if chat_template is None else chat_template
        if template is None:
            raise ModelError(
                "the tokenizer has no chat template",
                "set data.chat_template to a .jinja file, or take an instruction-tuned model",
            )
        if tools and chat_template is None and not self._replaced and "tool_use" in self._templates:
            template = self._templates["tool_use"]
        from jinja2 import TemplateError, TemplateSyntaxError
        from jinja2.exceptions import SecurityError

        if self._fault is not None and chat_template is None:
            raise self._fault
        if taken := sorted(self._own_arguments & set(template_args)):
            raise ConfigError(
                f"data.chat_template_args: {', '.join(taken)}: not for the template, the tokenizer takes it itself",
                "only switches of the template stand here, such as enable_thinking",
            )
        try:
            with template_limits():
                text = self._plain.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=[dict(tool) for tool in tools] if tools else None,
                    chat_template=template,
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                    **template_args,
                )
            check_length(text)
        except TemplateSyntaxError as error:
            raise self._template_fault(f"line {error.lineno}: {error.message}") from error
        except SecurityError as error:
            raise self._template_fault(f"it tries what no template may: {error}") from error
        except (TemplateLimitError, RecursionError, MemoryError) as error:
            raise self._template_fault(str(error) or "it needs more memory than there is") from error
        except TemplateError:
            raise
        except Exception as error:
            # What a template does with a message of another shape, such as joining a list to a text.
            raise TemplateError(f"{type(error).__name__}: {error}") from error
        return str(text)

    @cached_property
    def _own_arguments(self) -> set[str]:
        named = inspect.signature(self._plain.apply_chat_template).parameters.values()
        return {each.name for each in named if each.kind is not each.VAR_KEYWORD} | {"messages"}

    def _template_fault(self, fact: str) -> ModelError:
        return ModelError(
            f"{self._place}: {fact}", "mend the template, or set data.chat_template to another .jinja file"
        )

    def stream_decoder(self, *, after: Sequence[int] = ()) -> "StreamDecoder":
        """A decoder that turns tokens into text one by one: text that goes on from that of the tokens `after`."""
        return StreamDecoder(self, () if self.decode(after).endswith("\ufffd") else after)

    def _find_turn_end(self, ends: set[int]) -> int | None:
        """The first special or end token that the template writes after an assistant's words; None without one."""
        from jinja2 import TemplateError

        if self.chat_template is None:
            return None
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self.render_chat(turns, add_generation_prompt=False, template_args={})
        except TemplateError:  # a template that wants more than two plain turns
            return None
        except ModelError as fault:
            self._fault = fault  # no reason to refuse a base whose template is replaced, or a row of plain text
            return None
        if not text.strip():
            self._fault = self._template_fault("it writes nothing")
        _, found, tail = text.rpartition(_PROBE)
        if not found:
            return None
        special = {int(token) for token in self._plain.all_special_ids} | {
            int(token) for token, added in self._plain.added_tokens_decoder.items() if added.special
        }
        ending = (special - {self.bos_id}) | ends  # a template that always opens the next turn may write BOS there
        return next((token for token in self.encode(tail) if token in ending), None)


class StreamDecoder:
    """Tokens in, finished text out: the pieces joined are exactly `decode` of all tokens, as it follows `after`."""

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(after)  # the last finished piece's tokens, then the pending ones
        self._finished = len(self._tokens)  # how many of them are finished

    def add(self, token: int) -> str:
        """The text that `token` finishes: "" while a multi-byte character is incomplete."""
        self._tokens.append(token)
        return self._take(final=False)

    def finish(self) -> str:
        """What is left at the end of the stream: an incomplete character comes as U+FFFD."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        # A token's text depends on the one before it (sentencepiece spaces), so both are decoded and subtracted.
        before = self._tokenizer.decode(self._tokens[: self._finished])
        text = self._tokenizer.decode(self._tokens)
        if len(text) <= len(before) or (text.endswith("\ufffd") and not final):
            return ""
        self._tokens = self._tokens[self._finished :]
        self._finished = len(self._tokens)
        return text[len(before) :]
