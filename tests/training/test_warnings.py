"""Early warnings: each comes where it should, with its figures, once, and a healthy run has none."""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest

from mlx_lora.config import LoraSettings, OptimizerSettings, RunConfig
from mlx_lora.training.head import row_lengths
from mlx_lora.training.loop import Schedule
from mlx_lora.training.trunk import find_trunk
from mlx_lora.training.warnings import (
    Watch,
    exploding_gradients,
    mute_end_tokens,
    still_loss,
    turning_validation,
    unusual_learning_rate,
)
from tests.tiny import tiny_model


@dataclass(frozen=True)
class Step:
    step: int
    loss: float
    gradient_norm: float = 1.0


def steps_of(losses, norms=None):
    norms = norms or [1.0] * len(losses)
    return [Step(number, loss, norm) for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1)]


def watch(steps_per_epoch=10, total_steps=200, events=(), **optimizer):
    config = RunConfig.model_validate(
        {
            "model": "tiny",
            "data": {"train": "rows"},
            "train": {"steps": total_steps},
            "optimizer": optimizer,
            "output_dir": "out",
        }
    )
    return Watch(config, Schedule((), 1, 1, 0, steps_per_epoch, total_steps), events)


def look(losses, *, per_epoch=40, warmup=0, total=1000):
    """still_loss after each step; (step, line) where it says something."""
    found = []
    for count in range(1, len(losses) + 1):
        line = still_loss(steps_of(losses[:count]), steps_per_epoch=per_epoch, warmup_steps=warmup, total_steps=total)
        if line:
            found.append((count, line))
    return found


def test_a_learning_rate_of_zero_is_named():
    line = unusual_learning_rate(OptimizerSettings(learning_rate=0.0), LoraSettings())
    assert line == "optimizer.learning_rate is 0: nothing will be learned; 1e-3 is the default"


@pytest.mark.parametrize(
    ("rate", "alpha", "rank", "rslora", "where"),
    [
        (1e-3, 32.0, 16, False, None),  # the defaults
        (1.5e-3, 16.0, 8, False, None),  # the demo
        (2e-4, 16.0, 64, False, None),  # QLoRA's
        (1e-5, 160.0, 8, False, None),  # mlx-lm's: scale 20
        (4e-3, 64.0, 32, False, None),
        (1e-5, 16.0, 8, False, "below"),  # full fine-tuning's rate
        (0.1, 32.0, 16, False, "above"),
        (5e-3, 32.0, 16, True, "above"),  # alpha / sqrt(rank): four times the reach
        (5e-3, 32.0, 16, False, None),
    ],
)
def test_a_learning_rate_is_far_from_the_usual_or_it_is_not(rate, alpha, rank, rslora, where):
    lora = LoraSettings(rank=rank, alpha=alpha, use_rslora=rslora)
    line = unusual_learning_rate(OptimizerSettings(learning_rate=rate), lora)
    assert (line is None) == (where is None)
    if where:
        assert f"optimizer.learning_rate {rate:g} is far {where} what is usual for adamw with rank {rank}" in line


def test_the_usual_rates_are_in_the_line_and_other_rules_have_their_own():
    line = unusual_learning_rate(OptimizerSettings(learning_rate=1e-6), LoraSettings(rank=16, alpha=10.0))
    assert line.endswith("alpha 10 (5e-05 to 6e-02): little will be learned")
    assert unusual_learning_rate(OptimizerSettings(name="lion", learning_rate=1e-4), LoraSettings()) is None
    assert "5e-05 to 2e-01" in unusual_learning_rate(
        OptimizerSettings(name="lion", learning_rate=1.0), LoraSettings(alpha=1.0)
    )
    assert unusual_learning_rate(OptimizerSettings(name="sgd", learning_rate=50.0), LoraSettings()) is None


def test_a_loss_that_does_not_move_is_named_at_the_end_of_an_epoch():
    still = [3.0, 2.0] * 60
    count, line = look(still)[0]
    assert count == 80
    assert line.startswith("the training loss does not move: 2.500 at first, 2.500 by step 80; raise")
    assert look(still, warmup=20)[0][0] == 120  # 64 steps after the warm-up, at the end of an epoch
    assert look(still[:30], per_epoch=10, total=30)[0][0] == 30  # a short run: when it is over
    assert look(still[:12], per_epoch=6, total=12) == []  # too short to say


def test_a_loss_that_moves_from_epoch_to_epoch_is_left_alone():
    assert look([3.0] * 40 + [2.9] * 80) == []
    assert look([0.01] * 120) == []  # nothing left to learn


def test_within_the_first_epoch_other_rows_need_more_certainty():
    generator = np.random.default_rng(0)
    quiet = (3.0 + 0.05 * generator.standard_normal(300)).tolist()
    noisy = (3.0 + 1.0 * generator.standard_normal(300)).tolist()
    falling = (3.0 - np.arange(300) / 300 + 0.05 * generator.standard_normal(300)).tolist()
    assert [count for count, _ in look(quiet, per_epoch=1000)] == [64, 128, 256]
    assert look(noisy, per_epoch=1000) == []
    assert look(falling, per_epoch=1000) == []


def test_gradients_explode_where_norm_and_loss_rise_together():
    calm, wild = [1.0] * 20, [2.0] * 5
    line = exploding_gradients(steps_of(calm + wild, [2.0] * 20 + [84.0] * 5))
    assert line.startswith(
        "the gradient norm explodes: 84 at step 25, 2 before, and the loss rose from 1.000 to 2.000; stop"
    )
    assert exploding_gradients(steps_of(calm + wild, [2.0] * 20 + [19.0] * 5)) is None
    assert exploding_gradients(steps_of(calm + [1.1] * 5, [2.0] * 20 + [84.0] * 5)) is None  # a near-zero loss spikes
    assert exploding_gradients(steps_of(calm + wild, [2.0] * 24 + [84.0])) is None  # one step is clipped
    assert exploding_gradients(steps_of([1.0] * 24, [1.0] * 19 + [99.0] * 5)) is None


def test_validation_turns_when_it_has_risen_twice_since_its_best():
    steps = steps_of([1.0] * 20 + [0.5] * 20)
    found = [(10, 2.0), (20, 1.0), (30, 1.1), (40, 1.2)]
    line = turning_validation(found, steps)
    assert line.startswith(
        "the validation loss rises: 1.0000 at step 20, 1.1000, 1.2000 at step 40, while the training"
    )
    assert "over-fitting. The adapter of step 20 is kept" in line
    for healthy in (found[:3], [*found[:3], (40, 1.05)], [(20, 1.0), (30, 1.005), (40, 1.01)], [(20, 3.0), (30, 2.0)]):
        assert turning_validation(healthy, steps) is None
    line = turning_validation(found, steps_of([1.0] * 20 + [1.5] * 20))
    assert line.endswith("and the training loss with it: lower optimizer.learning_rate")


def test_an_end_token_that_the_base_cannot_emit_is_named():
    assert mute_end_tokens({"<|im_end|>": 1.1, "</s>": 0.1}) is None
    assert mute_end_tokens({"<|im_end|>": 0.012, "</s>": 0.9}).startswith(
        "the base cannot emit '<|im_end|>' (1.2% of the usual length): it was never trained to"
    )


@pytest.mark.parametrize(("family", "bits"), [("llama", None), ("llama_untied", 4), ("gemma2", None), ("gpt2", None)])
def test_lengths_of_output_rows_are_measured_through_any_head(family, bits):
    model = tiny_model(family, bits=bits)
    trunk = find_trunk(model)
    before = np.array(row_lengths(trunk, probes=256))
    assert np.median(before) == pytest.approx(1.0, abs=0.05)
    if bits is None:
        table = {"gpt2": lambda: model.model.wte, "llama": lambda: model.model.embed_tokens}
        embedding = table.get(family, lambda: model.model.embed_tokens)()
        expected = np.linalg.norm(np.array(embedding.weight), axis=1)
        assert before == pytest.approx(expected / np.median(expected), rel=0.3)
        embedding.weight[4] = mx.zeros_like(embedding.weight[4])
        assert float(row_lengths(trunk)[4]) == 0.0


def test_looking_at_the_head_leaves_the_random_stream_alone():
    trunk = find_trunk(tiny_model())
    mx.random.seed(7)
    expected = mx.random.uniform().item()
    mx.random.seed(7)
    mx.eval(row_lengths(trunk))
    assert mx.random.uniform().item() == expected


def healthy():
    """A run of 200 steps over ten batches: noisy, falling to near zero, with a warm-up and single spikes."""
    generator = np.random.default_rng(1)
    losses = [4.0 * math.exp(-step / 40) + 0.02 + 0.1 * abs(generator.standard_normal()) for step in range(200)]
    norms = [1.0 + abs(generator.standard_normal()) + (30.0 if step % 50 == 49 else 0.0) for step in range(200)]
    validations = {step: 3.0 * math.exp(-step / 60) + (0.02 if step == 100 else 0.0) for step in range(0, 201, 20)}
    return steps_of(losses, norms), validations


def test_a_healthy_run_prints_nothing():
    steps, validations = healthy()
    over = watch()
    said = over.start() + over.validation(0, validations[0], kept=False)
    for step in steps:
        said += over.step(step)
        if step.step in validations:
            said += over.validation(step.step, validations[step.step], kept=step.step != 120)
    assert said == []


def sick(over, first=1, last=200):
    said = []
    for number in range(first, last + 1):
        said += over.step(Step(number, 3.0 if number < 150 else 9.0, 1.0 if number < 150 else 90.0))
        if number % 20 == 0:
            said += over.validation(number, 2.0 + number / 100, kept=number == 20)
    return said


def test_a_loss_that_rises_while_more_rows_come_out_right_is_no_over_fitting():
    over = watch()
    losses = {20: 2.0, 40: 2.2, 60: 2.4, 80: 2.6}
    steps = steps_of([3.0 - step / 50 for step in range(80)])
    assert [line for step, loss in losses.items() for line in over.validation(step, loss, kept=True)] == []
    over = watch()
    said = [line for step in steps for line in over.step(step)]
    said += [line for step, loss in losses.items() for line in over.validation(step, loss, kept=step == 20)]
    assert [line.split(":")[0] for line in said] == ["the validation loss rises"]


def test_a_rising_loss_names_the_adapter_that_is_kept_where_a_lower_loss_had_fewer_rows_right():
    over = watch()
    said = [line for step in steps_of([3.0 - step / 50 for step in range(100)]) for line in over.step(step)]
    losses = {20: 2.0, 40: 1.5, 60: 1.6, 80: 1.7}  # after step 40 fewer rows came out right than after step 20
    said += [line for step, loss in losses.items() for line in over.validation(step, loss, kept=step == 20)]
    assert len(said) == 1
    assert said[0].startswith("the validation loss rises: 1.5000 at step 40, 1.6000, 1.7000 at step 80, while")
    assert "over-fitting. The adapter of step 20 is kept;" in said[0]


def test_each_warning_comes_once():
    over = watch(learning_rate=1e-7)
    said = over.start() + over.start() + sick(over)
    assert [line.split(":")[0].split(" is far")[0] for line in said] == [
        "optimizer.learning_rate 1e-07",
        "the validation loss rises",
        "the training loss does not move",
        "the gradient norm explodes",
    ]


def test_after_a_resume_nothing_is_said_again_and_nothing_is_missed():
    events = [{"event": "step", "step": number, "loss": 3.0, "gradient_norm": 1.0} for number in range(1, 150)] + [
        {"event": "validation", "step": number, "loss": 2.0 + number / 100} for number in range(20, 150, 20)
    ]
    events = [*sorted(events, key=lambda event: (event["step"], event["event"])), {"event": "end", "step": 149}]
    said = sick(watch(events=events), first=150)
    assert [line.split(":")[0] for line in said] == ["the gradient norm explodes"]


def test_a_learning_rate_of_zero_is_not_told_of_twice():
    over = watch(learning_rate=0.0)
    assert len(over.start()) == 1
    assert [line for step in steps_of([3.0] * 200) for line in over.step(step)] == []
