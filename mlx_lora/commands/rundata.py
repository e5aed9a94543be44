"""The tokenizer and the rows of a run, as `check` and `train` both see them."""

from mlx_lora.config import RunConfig
from mlx_lora.model.tokenizer import Tokenizer


def load_run_tokenizer(config: RunConfig) -> Tokenizer:
    """The tokenizer of a run, with the run's own chat template where it has one.

    Raises: ModelError when it cannot be loaded; ConfigError when data.chat_template cannot be read.
    """
    from mlx_lora.dataset.rendering import read_template
    from mlx_lora.model.load import load_tokenizer

    tokenizer = load_tokenizer(config.model, revision=config.revision)
    path = config.data.chat_template
    # Another template may end its turns with another token.
    return (
        tokenizer if path is None else tokenizer.with_chat_template(read_template(path), f"data.chat_template: {path}")
    )
