"""What configs say of prompts, bases and context."""

from pathlib import Path
from typing import Any

import pytest

from mlx_lora.chat.rendering import Rendering, context_length, model_of, rendering_of
from mlx_lora.errors import AdapterError

FOLDER = Path("adapters/x")


def test_an_adapter_says_how_its_prompts_are_written() -> None:
    facts = {"system_prompt": "Brief.", "chat_template": "{{ 1 }}", "chat_template_args": {"enable_thinking": False}}
    rendering = rendering_of({"mlx_lora": facts}, FOLDER)
    assert rendering == Rendering("Brief.", "{{ 1 }}", {"enable_thinking": False})
    assert rendering.settings().chat_template_args == {"enable_thinking": False}
    assert rendering.settings().system_prompt is None


def test_an_adapter_of_mlx_lm_has_plain_prompts() -> None:
    assert rendering_of({"fine_tune_type": "lora"}, FOLDER) == Rendering()


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"system_prompt": 3}, "system_prompt"),
        ({"chat_template": ["x"]}, "chat_template"),
        ({"chat_template_args": {"x": [1]}}, "chat_template_args"),
        ({"chat_template_args": "x"}, "chat_template_args"),
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


@pytest.mark.parametrize("config", [{}, {"model": 3}, {"mlx_lora": {"model": "x", "revision": 3}}])
def test_an_adapter_without_the_name_of_its_base_asks_for_it(config: dict[str, Any]) -> None:
    with pytest.raises(AdapterError) as caught:
        model_of(config, FOLDER)
    assert caught.value.hint == "name the base with --model"


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024, "n_ctx": 512}, 1024),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": None}, None),
        ({}, None),
    ],
)
def test_the_context_is_read_from_the_models_config(config: dict[str, Any], tokens: int | None) -> None:
    assert context_length(config) == tokens
