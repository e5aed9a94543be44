"""`lora.init: contrastive`: what A reads is chosen from the rows before the first step. Knows nothing of files.

An adapter adds scale · (x A) B. Where the columns of A lie along inputs x that the taught rows have and other text has
not, other text is left nearly as it was, whatever B learns: each column a is to have much of the taught rows' energy
aᵀ C a beside that of the others, the generalized eigenvectors of the two covariances. Only B is trained then.
Sources: two covariances, contrastive PCA (arXiv 1709.06716); A where there is little of the activations that hold what
is to be kept, LoRA-Null (arXiv 2503.02659), whose A is best kept as well; A kept, LoRA-FA (arXiv 2308.03303).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_lora.dataset.examples import Example
from mlx_lora.errors import TrainingError
from mlx_lora.lora.inject import iter_lora_modules, replace_module
from mlx_lora.lora.layer import AdapterLayer

TAUGHT, OTHER = 4096, 8192  # positions that are looked at, at most
TOGETHER = 2048  # positions that pass the model in one batch
_RIDGE = 0.01  # of the others' mean energy: a direction that they were not seen to use is not one that they never use
_SPARE, _ROUNDS = 16, 8  # of the subspace iteration: columns more than are asked for, and how often it is refined
_LEAVE_OUT = "leave that module out of lora.target_modules, or take lora.init: random"
_NOTHING = 1e-9  # of the strongest column's energy: the taught rows have no such direction


@dataclass(frozen=True)
class Contrast:
    """How the adapter at `path` reads: the taught rows' energy beside the others'; 1.0 for an A that chooses none."""

    path: str
    ratio: float


def contrast_adapters(
    model: nn.Module, examples: Sequence[Example], seed: int
) -> Iterator[tuple[int, int] | list[Contrast]]:
    """Put an A into each adapter of `model`; yield (adapters done, in all), and last what was found.

    examples: the taught rows and the base's own answers, which have `expected`; there are both. The model answers as
    the base here, whatever its adapters hold. Raises: TrainingError.
    """
    random = np.random.default_rng(seed)
    taught = _batches([row for row in examples if row.expected is None], TAUGHT, random)
    other = _batches([row for row in examples if row.expected is not None], OTHER, random)
    if not taught or not other:
        raise TrainingError(
            "lora.init: contrastive: the base gave no answers to compare with", "see data.replay_prompts"
        )
    adapters = dict(iter_lora_modules(model))
    kept: dict[str, list[mx.array]] = {}  # in the order in which a forward comes to them
    try:
        for path, adapter in adapters.items():
            replace_module(model, path, _Reader(adapter, path, kept))
        for tokens, _ in (*taught, *other):
            model(mx.array(tokens))  # nothing is computed yet: MLX is lazy, and of the head nothing ever is
    finally:
        for path, adapter in adapters.items():
            replace_module(model, path, adapter)
    places = [mx.array(places) for _, places in (*taught, *other)]
    for path in adapters:
        if len(kept.get(path, ())) != len(places):
            raise TrainingError(f"lora.init: contrastive: {path} is not called once in a forward", _LEAVE_OUT)
    found, last = list[Contrast](), list[mx.array]()
    for path in list(kept):
        adapter, inputs = adapters[path], kept.pop(path)
        if not _same(inputs, last):  # queries, keys and values have one input
            lines = [x.reshape(-1, x.shape[-1])[at].astype(mx.float32) for x, at in zip(inputs, places, strict=True)]
            both = mx.concatenate(lines[: len(taught)]), mx.concatenate(lines[len(taught) :])
            mx.eval(both)
            columns, ratio = contrast_columns(*both, adapter.rank)
            last = inputs
        adapter.lora_a = mx.array(columns)
        found.append(Contrast(path, ratio))
        yield len(found), len(adapters)
    yield found


def contrast_columns(taught: mx.array, other: mx.array, rank: int) -> tuple[np.ndarray, float]:
    """A of shape (D, rank), float32, best column first, and its ratio of energies as Contrast has it.

    taught: (N, D), other: (M, D), float32, inputs of a module. Every column answers the taught rows with the energy
    that a random one would have, 1 / 3D of theirs (lora/layer.py). Where they have fewer directions the rest is zero.
    """
    width, least = taught.shape[1], float(np.finfo(np.float32).tiny)
    energies = [max(float(mx.square(lines).sum()) / len(lines), least) for lines in (taught, other)]
    ridge = _RIDGE * energies[1] / width
    solve, lines = _Inverse(other, ridge), np.array(taught)
    basis = np.random.default_rng(0).standard_normal((width, min(width, rank + _SPARE)))
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(solve(lines.T @ (lines @ basis.astype(np.float32))))[0]
    own = _energy(lines, basis)
    whitened = np.linalg.inv(np.linalg.cholesky(_energy(np.array(other), basis) + ridge * basis.T @ basis))
    vectors = np.linalg.eigh(whitened @ own @ whitened.T)[1]
    columns = (basis @ whitened.T @ vectors)[:, ::-1][:, :rank]
    strengths = np.square(lines @ columns).mean(axis=0)
    there = strengths > _NOTHING * strengths.max(initial=0)
    columns = columns * np.where(there, np.sqrt(energies[0] / (3 * width) / np.where(there, strengths, 1)), 0)
    kept = float(np.square(np.array(other) @ columns).sum() / len(other) + ridge * np.square(columns).sum())
    ratio = float(np.square(lines @ columns).sum() / len(lines)) / max(kept, least) * (energies[1] / energies[0])
    return columns.astype(np.float32), ratio


def contrast_bytes(width: int, layer: int, heads: int, longest: int) -> int:
    """Bytes that contrast_adapters may take beyond the model.

    width: of the widest input; layer: numbers in and out of one layer's matrices for a position.
    """
    positions, matrix = TAUGHT + OTHER, min(width, OTHER)
    scores = max(TOGETHER, longest) * longest * heads
    return 4 * (3 * positions * width + 2 * positions * layer + 2 * scores) + 3 * 8 * matrix**2


class _Reader(nn.Module):
    """Stands in an adapter's place: keeps what comes in, and answers as the base."""

    def __init__(self, adapter: AdapterLayer, path: str, kept: dict[str, list[mx.array]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = adapter.linear
        self._inputs: Callable[[], list[mx.array]] = lambda: kept.setdefault(path, [])

    def __call__(self, x: mx.array) -> mx.array:
        self._inputs().append(x)
        y: mx.array = self.linear(x)
        return y


class _Inverse:
    """v → (C + ridge)⁻¹ v for the covariance C of `lines` (M, D), by the smaller of its two forms (Woodbury)."""

    def __init__(self, lines: mx.array, ridge: float) -> None:
        self._count, self._ridge = len(lines), ridge
        self._wide = np.array(lines) if lines.shape[1] > len(lines) else None
        matrix = np.array(lines.T @ lines if self._wide is None else lines @ lines.T, np.float64) / len(lines)
        self._inverse = np.linalg.inv(matrix + ridge * np.eye(len(matrix)))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        if self._wide is None:
            found: np.ndarray = self._inverse @ vectors
        else:
            within = self._inverse @ (self._wide @ vectors) / self._count
            found = (vectors - self._wide.T @ within) / self._ridge
        return found


def _energy(lines: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Covariance of `lines` in the coordinates of `basis`."""
    inside = lines @ basis.astype(np.float32)
    energy: np.ndarray = inside.T @ inside / len(lines)
    return energy


def _same(inputs: Sequence[mx.array], last: Sequence[mx.array]) -> bool:
    return len(inputs) == len(last) and all(one is other for one, other in zip(inputs, last, strict=True))


def _batches(rows: Sequence[Example], most: int, random: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows drawn until `most` positions are there: tokens (B, T) padded with 0, and the places that are no padding."""
    chosen, left = list[np.ndarray](), most
    for place in random.permutation(len(rows)):
        if left <= 0:
            break
        chosen.append(rows[place].tokens[:left])
        left -= len(chosen[-1])
    chosen.sort(key=len)
    batches, group = list[tuple[np.ndarray, np.ndarray]](), list[np.ndarray]()
    for tokens in [*chosen, None]:
        if group and (tokens is None or (len(group) + 1) * len(tokens) > TOGETHER):
            padded = np.zeros((len(group), len(group[-1])), np.int32)
            real = np.arange(padded.shape[1]) < np.array([[len(one)] for one in group])
            padded[real] = np.concatenate(group)
            batches.append((padded, np.flatnonzero(real).astype(np.int32)))
            group = []
        if tokens is not None:
            group.append(tokens)
    return batches
