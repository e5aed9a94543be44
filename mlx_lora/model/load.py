"""The base model into memory: weights, tokenizer, identity. Runs no code and reads no pickle from a model's folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lora.errors import ModelError
from mlx_lora.model.identity import Identity, identify, read_json_object
from mlx_lora.model.rotary import rotary_settings
from mlx_lora.model.sources import TOKENIZER_FILES, Source, find_source, resolve_model
from mlx_lora.model.tokenizer import Tokenizer
from mlx_lora.model.weights import StoredTensor, read_headers, weight_files

if TYPE_CHECKING:
    import mlx.nn as nn

__all__ = ["Identity", "LoadedModel", "load_base", "load_tokenizer", "resolve_model"]

_QUANT_METHODS = (
    "awq",
    "gptq",
    "bitnet",
    "compressed-tensors",
    "fp8",
    "modelopt",
    "mxfp4",
    "mxfp8",
)  # mlx_lm reads them
_MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")
# What mlx_lm's models do with a config that makes no sense.
_UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError, RuntimeError)
_UNFIT_HINT = "download it again; if that does not help, it needs another version of mlx-lm"


@dataclass
class LoadedModel:
    """A base in memory, in evaluation mode.

    `config` is config.json as mlx_lm resolved it, `path` the folder, `compute` one line on the type it computes in,
    `quantization` how each module is stored on disk: path → {"group_size", "bits", "mode"}, None for plain weights.
    """

    model: "nn.Module"
    tokenizer: Tokenizer
    identity: Identity
    config: dict[str, Any]
    path: Path
    compute: str
    quantization: dict[str, dict[str, Any]] | None

    @property
    def contents(self) -> str:
        """What it computes follows from: config, weights and type."""
        return f"{self.identity.config_sha256} {self.identity.weights_sha256} {self.compute}"


def load_base(name: str, *, revision: str | None = None, compute: str = "auto") -> LoadedModel:
    """Load model `name` (built-in, folder or Hugging Face id) to compute as `compute` says (see RunConfig.compute).

    Raises: ModelError with place, fact and remedy.
    """
    source = find_source(name, revision=revision, weights=False)
    check_config(source.path)
    if source.revision is not None:  # on Hugging Face: only now are gigabytes worth fetching
        source = find_source(name, revision=source.revision)
    check_size(source.path, read_headers(weight_files(source.path)))
    tokenizer = _read_tokenizer(source.path)

    from mlx_lora.model.compute import apply_compute, quantization_of

    model, config = read_model(source.path)
    quantization = quantization_of(model)
    compute_text = apply_compute(model, compute)
    _check_logits(source.path, model, tokenizer, compute, compute_text)
    identity = identify(source, tokenizer.chat_template)
    return LoadedModel(model, tokenizer, identity, config, source.path, compute_text, quantization)


def reload_layers(base: LoadedModel, compute: str, count: int) -> "list[nn.Module]":
    """The lowest `count` layers of `base` from its folder once more, as load_base gave them; nothing else is read.

    Raises: ModelError.
    """
    import mlx.nn as nn

    from mlx_lora.model.compute import apply_compute

    model, _ = read_model(base.path)  # lazily: weights that nobody asks for stay on disk
    holder: Any = nn.Module()
    holder.layers = list(model.layers[:count])
    holder.eval()
    apply_compute(holder, compute)
    layers: list[nn.Module] = holder.layers
    return layers


def load_tokenizer(name: str, *, revision: str | None = None) -> Tokenizer:
    """Load the tokenizer of model `name`; a Hugging Face model's weights are not fetched for it. Raises: ModelError."""
    source: Source = find_source(name, revision=revision, weights=False)
    return _read_tokenizer(source.path)


def check_config(folder: Path) -> None:
    """Refuse what mlx_lm would run, guess or fail on in passing. Raises: ModelError."""
    place = folder / "config.json"
    config = read_json_object(place)
    if config.get("model_file") is not None:
        # https://github.com/ml-explore/mlx-lm/pull/1385 (CVE-2026-5843): this file used to be executed
        raise ModelError(
            f"{place}: asks to run {config['model_file']!r} from the model's folder",
            "code from model folders is never run: take a model of an architecture that mlx-lm knows",
        )
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or re.fullmatch(r"[\w-]+", model_type) is None:
        raise ModelError(
            f"{place}: model_type is {str(model_type)[:60]!r}, expected a name such as 'llama'",
            "download or copy the model again, or take one that mlx-lm knows",
        )
    _check_architecture(place, config)
    quantization = config.get("quantization")
    if quantization is not None:
        mode = quantization.get("mode", "affine") if isinstance(quantization, dict) else None
        if mode not in _MODES or not all(type(quantization.get(key)) is int for key in ("bits", "group_size")):
            raise ModelError(
                f"{place}: quantization {quantization!r} is unknown", f"MLX reads the modes {', '.join(_MODES)}"
            )
        return
    text_config = config.get("text_config")
    nested = text_config if isinstance(text_config, dict) else {}
    foreign = config.get("quantization_config") or nested.get("quantization_config")
    if foreign:
        method = foreign.get("quant_method") if isinstance(foreign, dict) else foreign
        if method not in _QUANT_METHODS:
            raise ModelError(
                f"{place}: quantization method {method!r} is unknown",
                f"MLX reads its own and {', '.join(_QUANT_METHODS)}; look for an MLX version (mlx-community/…)",
            )


def _check_architecture(place: Path, config: dict[str, Any]) -> None:
    from mlx_lm.utils import _get_classes

    try:
        _get_classes(config)
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"{place}: model_type {config['model_type']!r} is unknown to mlx-lm {version('mlx-lm')}",
            "a newer mlx-lm may know it; otherwise take a model of another architecture",
        ) from error


def check_size(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse more layers than there are tensors: mlx_lm would build them all before it looks. Raises: ModelError."""
    config = read_json_object(folder / "config.json")
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            if isinstance(part.get(key), int | float) and part[key] > len(tensors):
                fact = f"{folder / 'config.json'}: {key} is {part[key]}, but its files hold {len(tensors)} tensors"
                raise ModelError(fact, "download or copy the model again")


def read_model(folder: Path) -> tuple["nn.Module", dict[str, Any]]:
    """The model and its config as mlx_lm resolves it; weights are read when they are used. Raises: ModelError."""
    from mlx_lm.utils import load_model

    try:
        changes = rotary_settings(read_json_object(folder / "config.json"))
        loaded: tuple[nn.Module, dict[str, Any]] = load_model(
            folder, lazy=True, model_config=changes, trust_remote_code=False
        )
    except _UNFIT as error:
        raise ModelError(f"{folder}: its weights do not fit its config.json: {_short(error)}", _UNFIT_HINT) from error
    return loaded


def _check_logits(folder: Path, model: "nn.Module", tokenizer: Tokenizer, compute: str, compute_text: str) -> None:
    """Refuse a model whose answers are no numbers: greedy decoding would take token 0 for ever, without a word."""
    import mlx.core as mx

    if compute == "quantized" and mx.default_device().type == mx.DeviceType.cpu:
        return  # several hundred times slower there (ARCHITECTURE.md §7), and only ever asked for to be merged
    tokens = tokenizer.encode("Hello")[:4] or [tokenizer.eos_id]
    try:
        finite = bool(mx.isfinite(model(mx.array([tokens]))).all().item())
    except _UNFIT as error:
        raise ModelError(f"{folder}: does not compute with its config.json: {_short(error)}", _UNFIT_HINT) from error
    if not finite:
        raise ModelError(
            f"{folder}: its answers are not numbers (NaN or infinity), computed in {compute_text}",
            "set `compute: float32`; if that does not help, the weights are damaged: download or copy them again",
        )


def _read_tokenizer(folder: Path) -> Tokenizer:
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise ModelError(
            f"{folder}: has no tokenizer ({', '.join(TOKENIZER_FILES[:2])}, …)",
            "copy the tokenizer files of the original model into it",
        )
    try:
        wrapper = _read_wrapper(folder)
    except Exception as error:  # the tokenizers library raises plain Exception for a file it cannot read
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{folder}: its tokenizer asks to run code from the model's folder (auto_map)",
                "code from model folders is never run: take a model whose tokenizer is a tokenizer.json",
            ) from error
        raise ModelError(
            f"{folder}: its tokenizer cannot be read: {_short(error)}", "download or copy its files again"
        ) from error
    end_tokens = _end_tokens(folder)
    try:
        tokenizer = Tokenizer(wrapper, end_tokens=end_tokens)
    except ModelError as error:
        raise ModelError(f"{folder}: {error.message}", error.hint) from error
    _check_vocabulary(folder, tokenizer)
    return tokenizer


def _check_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    """Refuse tokens that the model has no rows for: MLX would take whatever lies in memory there."""
    config = read_json_object(folder / "config.json")
    nested = config.get("text_config")
    rows = config.get("vocab_size", nested.get("vocab_size") if isinstance(nested, dict) else None)
    if not isinstance(rows, int):
        return
    for fact in (
        f"knows {tokenizer.plain_vocabulary_size} tokens" if tokenizer.plain_vocabulary_size > rows else "",
        f"ends answers with token {tokenizer.eos_id}" if tokenizer.eos_id >= rows else "",
    ):
        if fact:
            raise ModelError(
                f"{folder}: its tokenizer {fact}, but config.json gives the model {rows}",
                "copy the tokenizer files of the original model into it",
            )


def _read_wrapper(folder: Path) -> Any:
    from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer
    from transformers import PreTrainedConfig

    # False, not left out: without it transformers asks at the terminal whether to run the folder's code.
    settings: dict[str, Any] = {"trust_remote_code": False}
    try:
        wrapper = mlx_lm_load_tokenizer(folder, settings)
    except Exception as error:
        # transformers reads config.json only to choose a tokenizer class, and objects to types (16.0 is no int to it)
        # and values; for a model that it does not know it goes on with a plain config, and so do we.
        config = read_json_object(folder / "config.json")
        chosen_by = ("model_type", "architectures", "tokenizer_class")
        plain = PreTrainedConfig.from_dict({key: config[key] for key in chosen_by if key in config})
        try:
            wrapper = mlx_lm_load_tokenizer(folder, {**settings, "config": plain})
        except Exception:
            raise error from None  # the first one tells of the tokenizer as it is
    wrapper._tokenizer.encode("a")  # some faults show only now
    return wrapper


def _end_tokens(folder: Path) -> list[int]:
    """The end tokens that config.json and generation_config.json name, in that order."""
    found: list[int] = []
    for file in (folder / "config.json", folder / "generation_config.json"):
        if file.is_file():
            named = read_json_object(file).get("eos_token_id")
            tokens = [token for token in (named if isinstance(named, list) else [named]) if token is not None]
            if strange := next((token for token in tokens if type(token) is not int or token < 0), None):
                fact = f"{file}: eos_token_id is {str(strange)[:60]!r}, expected a token's number"
                raise ModelError(fact, "take the file of the original model")
            found += tokens
    return found


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
