"""What an adapter's config says of prompts and bases."""

from pathlib import Path
from typing import Any

import pytest

from mlx_lora.errors import AdapterError
from mlx_lora.lora.rendering import Rendering, choose_base, model_of, rendering_of

FOLDER = Path("adapters/x")


def test_an_adapter_says_how_its_prompts_are_written() -> None:
    facts = {"system_prompt": "Brief.", "chat_template": "{{ 1 }}", "chat_template_args": {"enable_thinking": False}}
    rendering = rendering_of({"mlx_lora": facts}, FOLDER)
    assert rendering == Rendering("Brief.", "{{ 1 }}", {"enable_thinking": False})
    assert rendering.settings().chat_template_args == {"enable_thinking": False}
    assert rendering.settings().system_prompt == "Brief."
    assert rendering.settings(system_prompt=False).system_prompt is None


def test_equal_renderings_have_equal_keys() -> None:
    assert Rendering(place="a").key == Rendering(place="b").key
    others = [
        Rendering("x"),
        Rendering(None, "x"),
        Rendering(chat_template_args={"x": 1}),
        Rendering(row_formats=("text",)),
    ]
    assert len({each.key for each in (Rendering(), *others)}) == 5


@pytest.mark.parametrize(
    ("trained", "asked", "format"),
    [
        ((), "alpaca", "alpaca"),  # an adapter that does not say
        (("question/answer",), "question/answer", "question/answer"),
        (("prompt/completion",), "question/answer", "prompt/completion"),
        (("alpaca", "question/answer"), "question/answer", "question/answer"),
        (("text",), "question/answer", "prompt/completion"),  # plain text goes on where the prompt ends
    ],
)
def test_a_row_is_asked_in_a_format_that_the_adapter_was_trained_on(
    trained: tuple[str, ...], asked: str, format: str
) -> None:
    assert Rendering(row_formats=trained).row_format(asked) == format


def test_an_adapter_of_mlx_lm_has_plain_prompts() -> None:
    assert rendering_of({"fine_tune_type": "lora"}, FOLDER) == Rendering()


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"system_prompt": 3}, "system_prompt"),
        ({"chat_template": ["x"]}, "chat_template"),
        ({"chat_template_args": {"x": [1]}}, "chat_template_args"),
        ({"chat_template_args": "x"}, "chat_template_args"),
        ({"row_formats": "text"}, "row_formats"),
        ({"row_formats": [1]}, "row_formats"),
        ({"system_prompt": "\ud83d"}, "system_prompt"),
    ],
)
def test_a_damaged_config_is_named(facts: dict[str, Any], name: str) -> None:
    with pytest.raises(AdapterError, match=f"adapters/x/adapter_config.json: mlx_lora.{name}: expected"):
        rendering_of({"mlx_lora": facts}, FOLDER)


@pytest.mark.parametrize(
    ("config", "base"),
    [
        ({"mlx_lora": {"model": "a/b", "revision": "main"}}, ("a/b", "main")),
        ({"mlx_lora": {"model": "smollm2-135m-instruct", "revision": None}}, ("smollm2-135m-instruct", None)),
        ({"model": "mlx-community/x"}, ("mlx-community/x", None)),
    ],
)
def test_an_adapter_names_its_base(config: dict[str, Any], base: tuple[str, str | None]) -> None:
    assert model_of(config, FOLDER) == base


@pytest.mark.parametrize(
    ("model", "revision", "base"),
    [
        (None, None, ("a/b", "old")),
        (None, "new", ("a/b", "new")),  # fuse, export and import left --revision without --model aside
        ("c/d", None, ("c/d", None)),
        ("c/d", "new", ("c/d", "new")),
    ],
)
def test_a_revision_alone_is_that_of_the_adapters_own_base(
    model: str | None, revision: str | None, base: tuple[str, str | None]
) -> None:
    assert choose_base(model, revision, lambda: ("a/b", "old")) == base


@pytest.mark.parametrize("config", [{}, {"model": 3}, {"mlx_lora": {"model": "x", "revision": 3}}])
def test_an_adapter_without_the_name_of_its_base_asks_for_it(config: dict[str, Any]) -> None:
    with pytest.raises(AdapterError) as caught:
        model_of(config, FOLDER)
    assert caught.value.hint == "name the base with --model"
