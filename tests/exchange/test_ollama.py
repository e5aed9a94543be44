"""A chat template's frame found by rendering, and the Modelfile made of it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment

from mlx_lora.errors import AdapterError
from mlx_lora.exchange.ollama import Frame, Render, build_modelfile, find_frame
from tests.exchange.ollama_rules import read_modelfile, render_go
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
# As Llama 3.1's: the system's turn is there without a system message too.
LLAMA31 = (
    "<s>{{ '<|start|>system<|end|>\n\nKnowledge: 2023\n\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ '<|eot|>' }}"
    "{% for m in messages if m.role != 'system' %}{{ '<|start|>' + m.role + '<|end|>\n\n' + m.content + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
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


CONVERSATIONS = (
    [{"role": "user", "content": "a\n\nb"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " {{ x }} "}],
    [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": 'She said "so".'},
        {"role": "user", "content": "d"},
    ],
)


@pytest.mark.parametrize("system", [None, "", 'Be brief.\nAnd say "yes"'])
@pytest.mark.parametrize(
    ("template", "bos"), [(LLAMA3, "<s>"), (LLAMA31, "<s>"), (ZEPHYR, ""), (CHATML, ""), (SMOLLM, "")]
)
def test_ollama_prompts_as_the_template_does_by_the_modelfile(template: str, bos: str, system: str | None) -> None:
    frame = find_frame(_render(template), bos)
    written = build_modelfile("./m.gguf", adapter=None, frame=frame, system_prompt=system, stops=["</s>", "<|eot|>"])
    instructions = read_modelfile(written)
    assert [name for name, _ in instructions if name != "SYSTEM"] == ["FROM", "TEMPLATE", *["PARAMETER stop"] * 2]
    found = dict(instructions)
    for turns in CONVERSATIONS:
        asked = (
            turns if system is None or turns[0]["role"] == "system" else [{"role": "system", "content": system}, *turns]
        )
        assert bos + render_go(found["TEMPLATE"], turns, found.get("SYSTEM")) == _render(template)(asked, True)


@given(st.text() | st.text('" \n\ta\u00a0'))
def test_every_system_prompt_is_read_back_as_it_is_or_refused(system: str) -> None:
    if '"""' in system or any(not sign.isprintable() and sign not in "\t\n\r" for sign in system):
        with pytest.raises(AdapterError, match="the system prompt holds"):
            build_modelfile("x", adapter=None, frame=None, system_prompt=system, stops=[])
        return
    text = build_modelfile("x", adapter="./a.gguf", frame=None, system_prompt=system, stops=[])
    assert read_modelfile(text) == [("FROM", "x"), ("ADAPTER", "./a.gguf"), ("SYSTEM", system)]


@pytest.mark.parametrize(
    ("system", "fact"),
    [
        ('say """', 'holds """, which ends a text'),
        ("a\u00a0b", r"holds the character U\+00A0, which Ollama leaves out"),
    ],
)
def test_a_system_prompt_that_a_modelfile_cannot_hold_is_refused(system: str, fact: str) -> None:
    with pytest.raises(AdapterError, match=fact):
        build_modelfile("x", adapter=None, frame=None, system_prompt=system, stops=[])


def test_a_template_with_signs_that_ollama_leaves_out_gives_none() -> None:
    assert find_frame(_render(CHATML.replace("<|im_end|>", "<|im_end|>\u200b")), "") is None
