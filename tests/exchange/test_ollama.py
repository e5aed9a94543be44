"""A chat template's frame found by rendering, and the Modelfile made of it."""

from collections.abc import Sequence

import pytest
from jinja2 import Environment

from mlx_lora.errors import AdapterError
from mlx_lora.exchange.ollama import Frame, Render, build_modelfile, find_frame
from tests.tiny import CHATML

LLAMA3 = (
    "<s>{% for m in messages %}{{ '<|start|>' + m.role + '<|end|>\n\n' + m.content + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
SMOLLM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}" + CHATML
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + ('' if m.role == 'user' else '</s>') + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SUMMING = "{{ messages | length }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_it() }}{% endif %}" + CHATML


def _render(template: str) -> Render:
    compiled = Environment().from_string(template)

    def render(turns: Sequence[dict[str, str]], follows: bool) -> str:
        return compiled.render(messages=turns, add_generation_prompt=follows)

    return render


def test_chatml_is_found_with_its_own_system_prompt() -> None:
    frame = find_frame(_render(SMOLLM), "")
    assert frame == Frame(
        {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")},
        "You are SmolLM.",
    )
    plain = find_frame(_render(CHATML), "")
    assert plain is not None
    assert (plain.around, plain.default_system) == (frame.around, None)


@pytest.mark.parametrize(("template", "bos"), [(LLAMA3, "<s>"), (ZEPHYR, ""), (CHATML, ""), (SMOLLM, "")])
def test_the_frame_writes_other_conversations_as_the_template_does(template: str, bos: str) -> None:
    frame = find_frame(_render(template), bos)
    assert frame is not None
    turns = [{"role": "user", "content": "a\n\nb"}, {"role": "assistant", "content": "c"}]
    turns += [{"role": "user", "content": "d"}]
    assert bos + frame.render(turns) == _render(template)(turns, True)


@pytest.mark.parametrize("template", [SUMMING, NO_SYSTEM, "{{ messages[-1].content }}", ""])
def test_a_template_without_a_plain_frame_gives_none(template: str) -> None:
    assert find_frame(_render(template), "") is None


def test_a_modelfile_holds_template_system_prompt_and_end_tokens() -> None:
    frame = find_frame(_render(SMOLLM), "")
    text = build_modelfile("./model.gguf", adapter=None, frame=frame, system_prompt="Be brief.", stops=["<|im_end|>"])
    assert text == (
        "FROM ./model.gguf\n"
        'TEMPLATE """{{- range .Messages }}'
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\n'
        'SYSTEM """Be brief."""\n'
        'PARAMETER stop "<|im_end|>"\n'
    )


def test_without_a_system_prompt_the_bases_own_is_said() -> None:
    frame = find_frame(_render(SMOLLM), "")
    text = build_modelfile("smollm2:135m", adapter="./adapter.gguf", frame=frame, system_prompt=None, stops=[])
    assert text.startswith("FROM smollm2:135m\nADAPTER ./adapter.gguf\nTEMPLATE")
    assert text.endswith('SYSTEM """You are SmolLM."""\n')
    assert build_modelfile("x", adapter=None, frame=None, system_prompt=None, stops=[]) == "FROM x\n"


def test_a_system_prompt_that_would_end_the_text_is_refused() -> None:
    with pytest.raises(AdapterError, match="system prompt"):
        build_modelfile("x", adapter=None, frame=None, system_prompt='say """', stops=[])
