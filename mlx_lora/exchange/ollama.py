"""Ollama's Modelfile: the base's turns as a Go template, found by rendering; end tokens and the system prompt.

Knows nothing of weights. Source: docs/modelfile.mdx and docs/template.mdx of ollama; parser/parser.go for what a
Modelfile cannot hold.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

from mlx_lora.errors import AdapterError

Turns = Sequence[dict[str, str]]
Render = Callable[[Turns, bool], str]  # messages, and whether an answer is to follow → the prompt as text
# Texts that no template contains by itself.
_WORDS = {"system": "mlxlora1", "user": "mlxlora2", "assistant": "mlxlora3", "again": "mlxlora4"}
_ONE = [{"role": "user", "content": _WORDS["user"]}]
_ALL = [
    *({"role": role, "content": _WORDS[role]} for role in ("system", "user", "assistant")),
    {"role": "user", "content": _WORDS["again"]},
]


@dataclass(frozen=True)
class Frame:
    """What a chat template writes around each role's words: role → (before, after); and a system prompt of its own."""

    around: dict[str, tuple[str, str]]
    default_system: str | None

    def render(self, turns: Turns) -> str:
        """The conversation, and the beginning of the answer to it, as this frame has them."""
        if self.default_system is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.default_system}, *turns]
        parts = [self.around[turn["role"]][0] + turn["content"] + self.around[turn["role"]][1] for turn in turns]
        return "".join(parts) + self.around["assistant"][0]

    def go_template(self, *, empty_system: bool = False) -> str:
        """The same for Ollama: a template in Go's language over .Messages.

        empty_system: a conversation without a system message begins with an empty one, which Ollama itself leaves out.
        """
        roles = [
            f'{{{{ {"else if" if place else "if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for place, (role, (before, after)) in enumerate(self.around.items())
        ]
        empty = f"{{{{ if not .System }}}}{''.join(self.around['system'])}{{{{ end }}}}" if empty_system else ""
        turns = f"{{{{- range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}"
        return f"{empty}{turns}{self.around['assistant'][0]}"


def find_frame(render: Render, bos: str) -> Frame | None:
    """The frame with which conversations come out as `render` writes them; None where there is none.

    bos: the text of a first token that the program adds by itself; the frame leaves it out.
    """

    def rendered(turns: Turns, follows: bool) -> str:
        return render(turns, follows).removeprefix(bos)

    try:
        frame = _guess(rendered(_ALL, False), rendered(_ALL, True), rendered(_ONE, True))
        if frame is None or any("{{" in part or unholdable(part) for pair in frame.around.values() for part in pair):
            return None
        longer = [*_ALL, {"role": "assistant", "content": "x\ny"}, {"role": "user", "content": "z"}]
        same = all(frame.render(turns) == rendered(turns, True) for turns in (_ONE, _ALL, longer, _ALL[1:]))
    except TemplateError:  # such as one that takes no system message: no frame then
        return None
    return frame if same else None


def written_system(render: Render, bos: str, frame: Frame, system: str) -> str:
    """`system` as the template writes it, which may trim it: Ollama does not."""
    wanted = render([{"role": "system", "content": system}, *_ONE], True).removeprefix(bos)
    trimmed = system.strip()
    return trimmed if frame.render([{"role": "system", "content": trimmed}, *_ONE]) == wanted else system


def _guess(whole: str, asked: str, one: str) -> Frame | None:
    parts: list[str] = []
    rest = whole
    for word in _WORDS.values():
        part, found, rest = rest.partition(word)
        if not found:
            return None
        parts.append(part)
    before_system, system_user, user_answer, answer_user = parts
    after_user, before_answer = rest, asked.removeprefix(whole)
    if user_answer != after_user + before_answer:
        return None
    # Where the words of user and assistant end alike, the next turn begins after that; else as much as is common.
    first = one.partition(_WORDS["user"])[0]
    if after_user and answer_user.startswith(after_user):
        before_user = answer_user.removeprefix(after_user)
    else:
        before_user = _common_end(_common_end(system_user, answer_user), first)
    after_system, after_answer = system_user.removesuffix(before_user), answer_user.removesuffix(before_user)
    own = first.removesuffix(before_user)
    around = {
        "system": (before_system, after_system),
        "user": (before_user, after_user),
        "assistant": (before_answer, after_answer),
    }
    default = own.removeprefix(before_system).removesuffix(after_system) if own else None
    return Frame(around, default)


def _common_end(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    length = next((count for count, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
    return one[len(one) - length :]


def unholdable(text: str) -> str | None:
    """What no text of a Modelfile can hold, and why; None where there is none of it in `text`."""
    if '"""' in text:
        return '""", which ends a text in a Modelfile'
    lost = next((sign for sign in text if not sign.isprintable() and sign not in "\t\n\r"), None)
    return None if lost is None else f"the character U+{ord(lost):04X}, which Ollama leaves out of a Modelfile"


def build_modelfile(
    source: str, *, adapter: str | None, frame: Frame | None, system_prompt: str | None, stops: Iterable[str]
) -> str:
    """The Modelfile: `source` is a GGUF file or a model of Ollama's, `adapter` a GGUF adapter beside it.

    Raises: AdapterError for a system prompt that a Modelfile cannot hold.
    """
    system = system_prompt if system_prompt is not None else frame.default_system if frame else None
    if system is not None and (reason := unholdable(system)):
        hint = "take --to gguf and give the prompt in conversations, or change it and train again"
        raise AdapterError(f"the system prompt holds {reason}", hint)
    lines = [f"FROM {source}"]
    if adapter is not None:
        lines.append(f"ADAPTER {adapter}")
    if frame is not None:
        lines.append(f'TEMPLATE """{frame.go_template(empty_system=system == "")}"""')
    if system is not None:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"
