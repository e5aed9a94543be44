"""Small tokenizers with templates in the shape of the families': a double of model.tokenizer.Tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent.parent / "templates"


@dataclass(frozen=True)
class Shape:
    """What a family's tokenizer has; `ends` are the tokens that end an answer, the template's own first."""

    special: tuple[str, ...]
    bos: str | None
    eos: str
    ends: tuple[str, ...]


_CHATML = Shape(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"))
_MISTRAL = Shape(("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", ("</s>",))
SHAPES = {
    "llama3": Shape(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|eot_id|>", "<|end_of_text|>"),
    ),
    "mistral": _MISTRAL,
    "mistral_system_last": _MISTRAL,
    "qwen3": Shape((*_CHATML.special, "<think>", "</think>"), None, "<|im_end|>", _CHATML.ends),
    "gemma3": Shape(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", ("<end_of_turn>", "<eos>")
    ),
    "phi": Shape(
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        None,
        "<|endoftext|>",
        ("<|end|>", "<|endoftext|>"),
    ),
    "smollm2": _CHATML,
    "no_end": Shape(("<s>", "</s>"), "<s>", "</s>", ("</s>",)),
}
# Merges that make one token of " Paris", so that a space before an answer can merge into it.
_WORD = "ĠParis"
_MERGES = [(_WORD[:length], _WORD[length]) for length in range(1, len(_WORD))]


class TemplateTokenizer:
    """A transformers tokenizer (one token a byte, except " Paris") behind the room's ChatTokenizer protocol."""

    def __init__(self, shape: Shape, chat_template: str | None, *, adds_bos: bool = False) -> None:
        self.plain = _byte_tokenizer(shape)
        self.chat_template = chat_template
        self.adds_bos = adds_bos
        self.eos_ids = frozenset(self.id(token) for token in shape.ends)
        self.eos_id = self.id(shape.ends[0])
        self.bos_id = None if shape.bos is None else self.id(shape.bos)
        self.renders = 0

    def id(self, token: str) -> int:
        """The id of a special token."""
        return int(self.plain.convert_tokens_to_ids(token))

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self.plain.encode(text, add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.plain.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool,
        template_args: Mapping[str, Any],
        chat_template: str | None = None,
    ) -> str:
        self.renders += 1
        return str(
            self.plain.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools,
                chat_template=chat_template or self.chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **template_args,
            )
        )


def tokenizer_of(family: str, *, adds_bos: bool = False) -> TemplateTokenizer:
    """The tokenizer of a key of SHAPES with the template of that name."""
    return TemplateTokenizer(SHAPES[family], (TEMPLATES / f"{family}.jinja").read_text(), adds_bos=adds_bos)


def tokenizer_without_template(*, adds_bos: bool = False) -> TemplateTokenizer:
    """A base model's tokenizer, with <s> and </s>."""
    return TemplateTokenizer(SHAPES["mistral"], None, adds_bos=adds_bos)


@cache
def _byte_tokenizer(shape: Shape) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [left + right for left, right in _MERGES]
    vocabulary = {token: number for number, token in enumerate([*shape.special, *alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(shape.special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=shape.bos, eos_token=shape.eos, clean_up_tokenization_spaces=False
    )
