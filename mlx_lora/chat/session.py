"""One chat: who answers, how, and what was said. Asks, retries, compares and takes back; knows nothing of commands."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlx_lora.chat.answer_text import AnswerText, take_apart
from mlx_lora.chat.conversation import Conversation, Ending, Turn
from mlx_lora.chat.interrupt import silent_keyboard, stop_on_interrupt
from mlx_lora.chat.sampling import Sampling
from mlx_lora.chat.screen import Measured, Screen
from mlx_lora.dataset.record import Message
from mlx_lora.errors import AdapterError, ModelError

if TYPE_CHECKING:
    from mlx_lora.chat.voice import Voice

_NO_MEMORY = "malloc]"  # as in "[metal::malloc] Attempting to allocate 48736917632 bytes which is greater than …"
_LESS = "/reset begins a shorter conversation; a base of fewer bits, or a smaller one, leaves more room"


@dataclass(frozen=True)
class SystemPrompt:
    """A system prompt that a person chose in place of the adapter's own; None for none at all."""

    text: str | None


@dataclass
class Session:
    """The state of a chat. `chosen_system` is None while the adapter's own system prompt holds."""

    voice: "Voice"
    screen: Screen
    sampling: Sampling = field(default_factory=Sampling)
    chosen_system: SystemPrompt | None = None
    conversation: Conversation = field(default_factory=Conversation)
    answers: int = 0  # given so far: each draws from a seed of its own

    @property
    def system(self) -> str | None:
        """The system prompt in force."""
        return self.voice.rendering.system_prompt if self.chosen_system is None else self.chosen_system.text

    def ask(self, question: str) -> Turn:
        """Answer `question` on the screen and keep the turn, cut short or not, unless it was stopped before a word.

        Raises: MlxLoraError when it cannot be answered; the conversation is then as before.
        """
        messages = self.conversation.messages(self.system, question)
        turn = self._answer(messages, question, self._next_seed(), self.screen, kept=True)
        if turn.answer or turn.ending is not Ending.INTERRUPTED:
            self.conversation.turns.append(turn)
        return turn

    def retry(self) -> Turn:
        """Answer the last question again, in place of its answer. Raises: MlxLoraError; the old answer then stays."""
        last = self.conversation.take_back()
        try:
            turn = self.ask(last.question)
        except BaseException:
            self.conversation.turns.append(last)
            raise
        if not turn.answer and turn.ending is Ending.INTERRUPTED:
            self.conversation.turns.append(last)
        return turn

    def compare(self, question: str, open_screen: Callable[[str], Screen]) -> None:
        """Answer `question` (or, where it is empty, the last one) as the base and as every adapter of this chat.

        It stays outside the conversation. `open_screen` gives the screen for who answers next.
        Raises: MlxLoraError.
        """
        if not self.voice.choices:
            raise AdapterError("no adapter is loaded, there is nothing to compare with", "/adapter NAME loads one")
        earlier = Conversation(list(self.conversation.turns))
        if not question:
            question = earlier.take_back().question
        seed = self._next_seed()
        with self.voice.aside():
            for who in (None, *self.voice.choices):
                if who is None:
                    self.voice.switch(False)
                else:
                    self.voice.answer_as(who)
                messages = earlier.messages(self.system, question)
                screen = open_screen(self.voice.label)
                if self._answer(messages, question, seed, screen, kept=False).ending is Ending.INTERRUPTED:
                    return

    def reset(self) -> None:
        """Forget the conversation."""
        self.conversation = Conversation()
        self.voice.forget()

    def set(self, name: str, value: str) -> None:
        """Change a setting of the answers. Raises: MlxLoraError."""
        self.sampling = self.sampling.changed(name, value)
        if name == "seed":
            self.answers = 0

    def _next_seed(self) -> int:
        seed = self.sampling.seed_of(self.answers)
        self.answers += 1
        return seed

    def _answer(self, messages: Sequence[Message], question: str, seed: int, screen: Screen, *, kept: bool) -> Turn:
        prompt = self.voice.render(messages)
        opened = self.voice.opens_thinking(prompt)
        pieces = self.voice.stream(prompt, self.sampling, seed)
        text, tokens, rate, ending = "", 0, 0.0, Ending.INTERRUPTED
        tags, refused = self.voice.think_tags, None
        screen.begin(AnswerText(tags, opened=opened))
        with stop_on_interrupt() as stop, silent_keyboard(), closing(pieces):
            try:
                for piece in pieces:
                    text += piece.text
                    tokens, rate = piece.tokens, piece.tokens_per_second
                    screen.feed(piece.text, tokens)
                    if piece.done:
                        ending = Ending.of(piece.stopped, tokens, self.sampling.max_tokens)
                    elif not stop.asked:
                        continue
                    stop.granted = True  # closing waits for the token under way, and lists what the cache holds
                    break
            except KeyboardInterrupt:  # pressed twice: the pieces end where they are
                ending = Ending.INTERRUPTED
            except RuntimeError as error:
                if _NO_MEMORY not in str(error):
                    raise
                refused, ending, kept = error, Ending.MEMORY, False
        screen.end(ending, Measured(tokens, rate, len(prompt) + tokens, self.voice.context, kept))
        if refused is not None:
            self.voice.forget()  # what it had read takes memory too
            raise ModelError(f"no memory is left for this answer: {refused}", _LESS) from refused
        return Turn(question, text, ending, self.voice.label, take_apart(text, tags, opened=opened))
