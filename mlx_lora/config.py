"""The settings of a run: every one defined once, with its unit and its limits. Knows nothing of files or of MLX."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, Field(min_length=1)]  # of a file, folder or model
Engine = Literal["supervised_positions", "shared_prefix", "frozen_layers", "compiled_step"]
ENGINE_PARTS: tuple[Engine, ...] = ("supervised_positions", "shared_prefix", "frozen_layers", "compiled_step")


class Settings(BaseModel):
    """A closed, frozen section: unknown keys are faults, not wishes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataSettings(Settings):
    """Where the rows come from and which of their tokens are trained."""

    train: Name = Field(
        description="File (.jsonl, .json, .csv), folder with train/valid/test, or Hugging Face data set."
    )
    valid: Name | None = Field(
        None, description="Validation rows; null splits `valid_share` of the training questions off."
    )
    test: Name | None = Field(None, description="Rows for `mlx-lora eval` when it is given no --data.")
    valid_share: Share = Field(
        0.1, description="Share of the distinct questions held out when `valid` is null; 0 for none."
    )
    system_prompt: str | None = Field(None, description="System message put before every row that has none of its own.")
    chat_template: Name | None = Field(None, description="A .jinja file used in place of the tokenizer's own template.")
    chat_template_args: dict[str, str | bool | int | float] = Field(
        default_factory=dict, description="Switches given to the template, such as {enable_thinking: false}."
    )
    train_on: Literal["completion", "all"] = Field(
        "completion", description="Train on assistant turns and their end tokens, or on all tokens."
    )
    max_seq_length: Positive = Field(2048, description="Longest row, in tokens.")
    truncation: Literal["error", "drop", "prompt"] = Field(
        "error", description="A row over the limit: stop, leave it out, or shorten its prompt from the left."
    )
    replay: Share | None = Field(
        None,
        description="Share of all training rows that the base answers itself before training, so that it forgets "
        "less; null for none.",
    )
    replay_prompts: Name | None = Field(
        None,
        description="Prompts to replay: a .txt file (one a line), any data file, or null for the built-in ones and, "
        "where a run needs more, some that the base writes itself.",
    )


class LoraSettings(Settings):
    """Which modules get adapters, and of what size."""

    method: Literal["lora", "dora"] = Field("lora", description="LoRA (arXiv 2106.09685) or DoRA (arXiv 2402.09353).")
    rank: Positive = Field(16, description="Rank R of the update B·A.")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="Effective scale = alpha / rank.")
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead (arXiv 2312.03732).")
    dropout: Share = Field(0.0, description="Dropout on the adapter's input while training.")
    target_modules: Literal["all-linear", "attention", "mlp"] | list[str] = Field(
        "all-linear", description="A preset, or a list of module names such as [q_proj, v_proj]."
    )
    layers: Literal["all"] | Positive = Field("all", description="`all`, or the last N transformer layers.")
    init: Literal["random", "contrastive"] = Field(
        "random",
        description="A at the start: random, or chosen to read what the taught rows have and the base's own answers "
        "(data.replay) have not. That A is kept and only B trained: less is forgotten.",
    )
    start_from: Name | None = Field(
        None,
        description="An adapter (its folder, or its name under adapters/) that the run goes on from, of the same base, "
        "method, rank, scale and modules; null starts from nothing.",
    )
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="Type of the numbers in the adapter file; training and checkpoints are float32."
    )

    @property
    def scale(self) -> float:
        """Factor on B·A·x: alpha / rank, or alpha / sqrt(rank) with use_rslora."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


class TrainSettings(Settings):
    """How long, in which portions, and when to look up."""

    epochs: Positive | None = Field(None, description="Passes over the training rows; give this or `steps`.")
    steps: Positive | None = Field(None, description="Optimizer updates; give this or `epochs`.")
    batch_size: Literal["auto"] | Positive = Field(
        8, description="Rows in a micro-batch; auto takes the most that fit memory: a power of two, at most 32."
    )
    group_by_prefix: bool | Literal["contexts"] = Field(
        "contexts",
        description="Make batches of rows whose prompts begin alike, where there are enough: less to compute. "
        "`contexts`: those with the same long system prompt or context; true: also those of one question form.",
    )
    gradient_accumulation_steps: Positive = Field(1, description="Micro-batches in one optimizer update.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, slower."
    )
    memory_limit_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Memory that MLX may take, in GB (10^9 bytes); null takes what this machine has."
    )
    engine: Literal["auto", "plain"] | list[Engine] = Field(
        "auto", description="Exact speed-ups: all that apply, none, or a list of parts."
    )
    eval_every: Positive | Literal["epoch"] = Field("epoch", description="Validate every N steps, or once an epoch.")
    save_every: Positive | Literal["epoch"] = Field(
        "epoch", description="Write a checkpoint every N steps, or once an epoch."
    )
    keep_last: Positive = Field(
        2, description="Checkpoints that are kept; older ones are removed. The best adapter is kept apart from them."
    )
    final_adapter: Literal["best", "last"] = Field(
        "best",
        description="Which adapter the run leaves where it validates: the best in validation, or that of the last "
        "checkpoint, whose learning rate has fallen furthest.",
    )
    early_stopping_patience: Positive | None = Field(
        None, description="Stop after this many validations without a better one; null never does."
    )
    retention: Name | None = Field(
        "general-knowledge",
        description="Questions asked of base and adapter at the end, to see what was forgotten: `general-knowledge` "
        "(50 built-in ones), a data file, or null.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Seed of A, dropout, the split and the order of rows."
    )

    @property
    def batch_rows(self) -> int:
        """`batch_size` as a number; a run that has `auto` there is given one before anything is batched."""
        if self.batch_size == "auto":
            raise ValueError("train.batch_size: auto has not been resolved")
        return self.batch_size

    @model_validator(mode="after")
    def _one_length(self) -> "TrainSettings":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self


class OptimizerSettings(Settings):
    """The update rule and its learning rate over the run."""

    name: Literal["adamw", "adam", "sgd", "adafactor", "muon", "lion"] = Field("adamw", description="As MLX has them.")
    learning_rate: Annotated[float, Field(ge=0)] = Field(1e-3, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "cosine",
        description="Shape after warm-up; `wsd` (warm-up, stable, decay) stays at the peak for three fifths of the "
        "steps and falls linearly.",
    )
    warmup_ratio: Share = Field(0.05, description="Share of the steps that climb from 0 to the peak.")
    final_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Last learning rate as a share of the peak."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="Decay of adamw, muon, lion and sgd.")
    momentum: Share = Field(0.9, description="Momentum of sgd and muon.")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="Clip the global gradient norm; null never."
    )


class RunConfig(Settings):
    """A whole run, resolved and valid: the only source of settings."""

    model: Name = Field(description="A built-in name, a Hugging Face id, a folder, or a llama's .gguf file.")
    revision: Name | None = Field(None, description="Branch, tag or commit of a Hugging Face model.")
    compute: Literal["auto", "quantized", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Weights while computing: auto keeps them as stored on a GPU and takes float32 on a CPU."
    )
    data: DataSettings
    lora: LoraSettings = Field(default_factory=LoraSettings, description="The adapter.")
    train: TrainSettings = Field(description="The loop.")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings, description="The update rule.")
    output_dir: Name = Field(description="The adapter folder that this run writes.")

    @property
    def without_effect(self) -> tuple[str, ...]:
        """The settings that other settings make idle, each as `name: fact`: they were meant to change something."""
        data, optimizer = self.data, self.optimizer
        idle = {
            "data.replay_prompts": (data.replay_prompts is not None and not data.replay, "data.replay is not set"),
            "data.valid_share": (data.valid is not None and _is_set(data, "valid_share"), "data.valid is given"),
            "optimizer.weight_decay": (
                optimizer.name in ("adam", "adafactor") and _is_set(optimizer, "weight_decay"),
                f"{optimizer.name} has none",
            ),
            "optimizer.momentum": (
                optimizer.name not in ("sgd", "muon") and _is_set(optimizer, "momentum"),
                f"{optimizer.name} takes none",
            ),
            "optimizer.final_ratio": (
                optimizer.schedule == "constant" and _is_set(optimizer, "final_ratio"),
                "optimizer.schedule is constant",
            ),
        }
        return tuple(f"{name} has no effect: {reason}" for name, (is_idle, reason) in idle.items() if is_idle)


def _is_set(section: Settings, name: str) -> bool:
    """Whether a setting differs from its default; a run.yaml names all settings, so that naming one tells nothing."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)
