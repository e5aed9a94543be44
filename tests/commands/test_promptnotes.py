"""What the formats for other programs lose of an adapter's prompts: each writer names all of it, and nothing else.

Reported: fuse, --to gguf-lora and --to peft dropped switches and template without a word; --to ollama said that the
switches were lost where its TEMPLATE has them.
"""

from pathlib import Path
from typing import Any

import pytest

from mlx_lora.commands.export import run_export
from mlx_lora.commands.fuse import run_fuse
from mlx_lora.commands.promptnotes import prompt_notes
from mlx_lora.lora.rendering import Rendering
from tests.exchange.adapters import make_adapter
from tests.tiny import CHATML

SYSTEM, SWITCHES = "Be brief.", {"enable_thinking": False}
# With thinking off it is CHATML; as it comes, turns begin otherwise.
FRAMED = (
    "{% set mark = '<|im_start|>' if enable_thinking is defined and not enable_thinking else '[' %}"
    + CHATML.replace("'<|im_start|>' +", "mark +").replace("'<|im_start|>assistant", "mark + 'assistant")
)
FRAMELESS = "{% for message in messages %}{{ message['content'] | length }}{% endfor %}!"
NO_SWITCHES = 'holds no switches of the chat template: give them in conversations: {"enable_thinking": false}'
NO_TEMPLATE = "holds no chat template: the adapter's own is mlx_lora.chat_template of its config"
TEMPLATE_BESIDE = "chat_template.jinja is the adapter's own: PEFT does not read it by itself, give it to the tokenizer"
NO_SYSTEM = "holds no system prompt: give the adapter's own in conversations"
FRAMELESS_NOTE = "no TEMPLATE is in the Modelfile: the chat template has no plain frame; Ollama goes by"

CASES: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("fuse", FRAMED, {}, [f"a model folder {NO_SYSTEM}", f"a model folder {NO_SWITCHES}"]),
    ("peft", FRAMED, {}, [TEMPLATE_BESIDE, *(f"PEFT's format {fact}" for fact in (NO_SYSTEM, NO_SWITCHES))]),
    (
        "gguf-lora",
        FRAMED,
        {},
        [f"a GGUF adapter {fact}" for fact in (f"{NO_SYSTEM}, or take --to ollama", NO_TEMPLATE, NO_SWITCHES)],
    ),
    ("gguf", FRAMED, {}, [f"a GGUF file {NO_SYSTEM}, or take --to ollama", f"a GGUF file {NO_SWITCHES}"]),
    ("ollama", FRAMED, {}, []),
    ("ollama", FRAMED, {"ollama_base": "base:1b"}, []),
    ("ollama", FRAMELESS, {}, [f"{FRAMELESS_NOTE} the one in the GGUF file", f"the Modelfile {NO_SWITCHES}"]),
    (
        "ollama",
        FRAMELESS,
        {"ollama_base": "base:1b"},
        [f"{FRAMELESS_NOTE} that of base:1b", f"the Modelfile {NO_TEMPLATE}", f"the Modelfile {NO_SWITCHES}"],
    ),
]


@pytest.mark.parametrize(("to", "template", "options", "expected"), CASES)
def test_every_format_names_what_it_loses_of_the_prompts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    to: str,
    template: str,
    options: dict[str, Any],
    expected: list[str],
) -> None:
    facts = {"system_prompt": SYSTEM, "chat_template": template, "chat_template_args": SWITCHES}
    make_adapter(tmp_path, facts=facts, layers=1)
    capsys.readouterr()
    output = tmp_path / ("out.gguf" if to in ("gguf", "gguf-lora") else "out")
    if to == "fuse":
        run_fuse([tmp_path / "run"], output)
    else:
        run_export(tmp_path / "run", output, to=to, **options)
    said = capsys.readouterr().err.splitlines()
    notes = [line.removeprefix("note: ") for line in said if line.startswith("note: ")]
    assert [note for note in notes if "no rows of the run" not in note] == expected
    if to == "ollama" and template == FRAMED:
        assert '<|im_start|>assistant\n"""' in (output / "Modelfile").read_text(), "rendered with thinking off"


@pytest.mark.parametrize(
    ("template", "written"),
    [(CHATML.replace("message['content']", "message['content'] | trim"), "Be brief."), (CHATML, "Be brief.\n")],
)
def test_ollamas_system_prompt_is_the_one_that_the_template_writes(tmp_path, template, written) -> None:
    """Found by reading: Llama 3's template trims the line break that `system_prompt: |` ends with, Ollama does not."""
    make_adapter(tmp_path, facts={"chat_template": template, "system_prompt": "Be brief.\n"}, layers=1)
    run_export(tmp_path / "run", tmp_path / "out", to="ollama", ollama_base="base:1b")
    assert f'\nSYSTEM """{written}"""\n' in (tmp_path / "out/Modelfile").read_text()


@pytest.mark.parametrize("day", ["strftime_now('%d %b %Y')", "'26 Jul 2024'"])
def test_the_date_that_a_template_writes_is_said_to_stay_as_it_is(tmp_path, capsys, day) -> None:
    """Found by reading: Ollama told a Llama 3.2 the day of the export for ever, without a word."""
    unused = "{% if unused %}{{ strftime_now('%Y') }}{% endif %}"
    template = (
        "{{ '<|im_start|>system\nToday is ' + DAY + '\n' }}".replace("DAY", day)
        + "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ '<|im_end|>\n' }}"
        + CHATML.replace("in messages", "in messages if message.role != 'system'")
        + unused
    )
    make_adapter(tmp_path, facts={"chat_template": template, "system_prompt": SYSTEM}, layers=1)
    run_export(tmp_path / "run", tmp_path / "out", to="ollama", ollama_base="base:1b")
    note = "note: the chat template writes the date: the Modelfile keeps that of today\n"
    assert (note in capsys.readouterr().err) is ("strftime" in day)


def test_what_a_file_holds_or_an_adapter_does_not_ask_for_is_no_loss() -> None:
    rendering = Rendering(SYSTEM, CHATML, SWITCHES)
    assert prompt_notes(rendering, "it", system_prompt=True, template=True, switches=True) == []
    assert prompt_notes(Rendering(), "it") == []
    assert prompt_notes(rendering, "it", system_prompt=True, switches=True) == [f"it {NO_TEMPLATE}"]
