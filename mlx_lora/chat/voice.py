"""Who answers: one base in memory, the adapters beside it, and what each of them has read so far.

Knows nothing of conversations, commands or terminals.
"""

from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_lora.chat.answer_text import THINK_TAGS
from mlx_lora.chat.places import adapter_label, find_adapter, is_adapter
from mlx_lora.chat.sampling import Sampling
from mlx_lora.dataset.record import Message
from mlx_lora.dataset.rendering import render_prompt
from mlx_lora.errors import AdapterError, ModelError
from mlx_lora.lora.adapter_config import read_adapter_config
from mlx_lora.lora.bank import AdapterBank, Resident, folder_version
from mlx_lora.lora.mix import Mix, parse_mix
from mlx_lora.lora.rendering import Rendering, choose_base, model_of, rendering_of
from mlx_lora.model.generate import Piece, PromptCache, stream_answer
from mlx_lora.model.load import LoadedModel, load_base
from mlx_lora.model.tokenizer import Tokenizer

DEFAULT_MODEL = "smollm2-135m-instruct"
_CACHES = 4  # key/value caches kept: those of the base and of the adapters used last
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class Attached:
    """Who answers beside the base: one adapter or a mix, as people name it, and how the prompts are written.

    residents: the adapters in it. rendering: that of the one named first.
    """

    label: str
    residents: tuple[Resident, ...]
    rendering: Rendering

    @property
    def is_mix(self) -> bool:
        """Whether it is anything else than one adapter as it was trained."""
        return len(self.residents) > 1 or self.label != self.residents[0].name

    @property
    def line(self) -> str:
        """What every command says of an adapter that it has put on."""
        return self.size if self.is_mix else self.residents[0].applied.line

    @property
    def size(self) -> str:
        """What it does to the base, in a few words."""
        if not self.is_mix:
            applied = self.residents[0].applied
            return f"{applied.active_modules} modules, ‖ΔW‖/‖W‖ = {applied.delta_ratio:.3g}"
        modules = {path for resident in self.residents for path in resident.layers}
        return f"mixed by weight on {len(modules)} modules"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know before trusting the answers."""
        first, *others = self.residents
        notes = [note for resident in self.residents for note in resident.applied.notes]
        for other in others:
            if rendering_of(other.adapter.config, other.adapter.folder) != self.rendering:
                notes.append(f"prompts are written as {first.name} wants them; {other.name} was trained with others")
        return tuple(notes)


class Voice:
    """Answers prompts as the base, an adapter or a mix; their key/value caches never mix."""

    def __init__(self, base: LoadedModel) -> None:
        self.base = base
        self.bank = AdapterBank(base.model, asdict(base.identity))
        self.attached: Attached | None = None
        self.enabled = False
        self.context = context_length(base.config)  # tokens that the model reads and writes, None where it does not say
        self.rendering = Rendering()
        self._tokenizer = base.tokenizer
        self._tokenizers: dict[str | None, Tokenizer] = {}  # by the adapters' own templates
        self._caches: OrderedDict[str | None, PromptCache] = OrderedDict()

    @property
    def label(self) -> str:
        """Who answers now: the adapter's name, or "base"."""
        return self.attached.label if self.attached is not None and self.enabled else "base"

    @property
    def think_tags(self) -> tuple[str, str]:
        """The texts that open and close a thinking block."""
        wrapper = self._tokenizer.wrapper
        begin, end = wrapper.think_start, wrapper.think_end
        return (begin, end) if begin and end else THINK_TAGS

    @property
    def choices(self) -> tuple[str, ...]:
        """Who can answer beside the base: the adapters in the bank, and the mix that was chosen last."""
        mix = () if self.attached is None or self.attached.label in self.bank.names else (self.attached.label,)
        return (*self.bank.names, *mix)

    def add(self, folder: Path, name: str | None = None) -> str:
        """Keep the adapter in `folder` in the bank, read anew where its files have changed; return its name there.

        name: one of its own, not given yet; by default as adapter_label has it.
        Raises: AdapterError for an adapter that cannot be read or belongs to another base; all is then as before.
        """
        label = adapter_label(folder) if name is None else name
        resident = name is None and label in self.bank.names
        if not resident or self.bank.resident(label).version != folder_version(folder):
            config, _ = read_adapter_config(folder)
            self._tokenizer_for(rendering_of(config, folder))  # refuses before anything is kept
            self.bank.add(label, folder, replace=name is None)
        return label

    def use(self, who: str | Path) -> Attached:
        """Answer as the adapter in a folder, of a name under adapters/, or as a mix of such (`a:0.7+b:0.3`).

        Prompts are rendered as it was trained. Raises: AdapterError; who answers is then as before.
        """
        mix = parse_mix(str(who), is_adapter)
        parts = tuple((self.add(find_adapter(name)), weight) for name, weight in mix.parts)
        return self.answer_as(str(Mix(parts)))

    def lookup(self, names: str) -> Attached:
        """An adapter of the bank, or a mix of several, by the names there. Raises: AdapterError."""
        mix = self.bank.parse(names)
        residents = tuple(self.bank.resident(name) for name in mix.names)
        first = residents[0].adapter
        return Attached(str(mix), residents, rendering_of(first.config, first.folder))

    def answer_as(self, names: str) -> Attached:
        """Answer as what `lookup` finds, which it returns. Raises: AdapterError; who answers is then as before."""
        attached = self.lookup(names)
        self._put(attached, True)
        return attached

    def answer_as_base(self) -> None:
        """Answer as the base alone, its prompts plain."""
        self._put(None, False)

    def remove(self, name: str) -> None:
        """Forget an adapter of the bank; where it answers, the base does from now on. Raises: AdapterError."""
        self.bank.remove(name)
        if self.attached is not None and name in [resident.name for resident in self.attached.residents]:
            self.answer_as_base()

    def switch(self, enabled: bool) -> None:
        """Switch the adapter on or off; the prompt stays rendered as the adapter wants it, so that only it differs.

        Raises: AdapterError when there is none.
        """
        if self.attached is None:
            raise AdapterError("no adapter is loaded, the base answers already", "/adapter NAME loads one")
        self._put(self.attached, enabled)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, others may answer; afterwards it is who it was."""
        before, enabled = self.attached, self.enabled
        try:
            yield
        finally:
            self._put(before, enabled)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of the prompt, up to where the answer starts, exactly as in training."""
        settings = self.rendering.settings(system_prompt=False)  # it comes as a message
        row_format = self.rendering.row_format("question/answer")
        return render_prompt(messages, self._tokenizer, settings, row_format=row_format)

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether `prompt` ends inside a thinking block that the template has opened."""
        return self._tokenizer.decode(prompt[-16:]).rstrip().endswith(self.think_tags[0])

    def stream(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> Generator[Piece, None, None]:
        """Stream the answer to `prompt`, computing only what this voice has not read yet.

        Raises: ModelError when prompt and one token of answer do not fit the model's context.
        """
        room = self.room(prompt)
        return stream_answer(
            self.base.model,
            self._tokenizer,
            list(prompt),
            cache=self._cache(),
            max_tokens=sampling.max_tokens if room is None else min(sampling.max_tokens, room),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
        )

    def room(self, prompt: Sequence[int]) -> int | None:
        """How many tokens of answer fit after `prompt`, None for any number. Raises: ModelError for none at all."""
        if self.context is None:
            return None
        if len(prompt) >= self.context:
            raise ModelError(
                f"the conversation is {len(prompt):,} tokens long with this question, and {self.base.identity.name} "
                f"reads at most {self.context:,}",
                "/undo takes turns back, /reset begins anew, and a shorter question may fit",
            )
        return self.context - len(prompt)

    def forget(self) -> None:
        """Drop all key/value caches: nothing has been read."""
        self._caches.clear()

    def _cache(self) -> PromptCache:
        key = self.bank.cache_key
        cache = self._caches.setdefault(key, PromptCache())
        self._caches.move_to_end(key)
        while len(self._caches) > _CACHES:
            self._caches.popitem(last=False)
        return cache

    def _put(self, attached: Attached | None, enabled: bool) -> None:
        rendering = Rendering() if attached is None else attached.rendering
        tokenizer = self._tokenizer_for(rendering)
        self.bank.activate(attached.label if attached is not None and enabled else None)
        self.attached, self.enabled, self.rendering, self._tokenizer = attached, enabled, rendering, tokenizer

    def _tokenizer_for(self, rendering: Rendering) -> Tokenizer:
        template = rendering.chat_template
        if template not in self._tokenizers:
            self._tokenizers[template] = self.base.tokenizer.with_chat_template(template, rendering.place)
        return self._tokenizers[template]


def load_voice(adapters: Sequence[str | Path], *, model: str | None, revision: str | None) -> Voice:
    """Load the base (`model`, or that of the first adapter, or the built-in one) and all `adapters`; the first answers.

    adapters: as Voice.use takes them. Raises: ModelError, AdapterError.
    """
    folders = [find_adapter(name) for who in adapters for name in parse_mix(str(who), is_adapter).names]
    name, chosen = base_for(folders, model=model, revision=revision)
    voice = Voice(load_base(name, revision=chosen))
    for folder in folders:
        voice.add(folder)
    if adapters:
        voice.use(adapters[0])
    return voice


def base_for(folders: Sequence[Path], *, model: str | None, revision: str | None) -> tuple[str, str | None]:
    """Name and revision of the base: as asked for, else of the first adapter, else the built-in one.

    Raises: AdapterError when that adapter does not say.
    """

    def own() -> tuple[str, str | None]:
        return model_of(read_adapter_config(folders[0])[0], folders[0]) if folders else (DEFAULT_MODEL, None)

    return choose_base(model, revision, own)


def context_length(config: Mapping[str, Any]) -> int | None:
    """The tokens that a model with this config.json reads and writes at most, None where it does not say."""
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, Mapping) else {}):
        for key in _CONTEXT_KEYS:
            value = part.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None
