"""Several updates to one: the weighted sum, exact or cut to a rank, TIES and DARE. Knows nothing of files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from mlx_lora.lora.factors import Cut, Factors, add, cut, factorize, widen

Method = Literal["linear", "svd", "ties", "dare"]
METHODS: tuple[Method, ...] = ("linear", "svd", "ties", "dare")
DENSITIES: Mapping[str, float] = {"ties": 0.2, "dare": 0.5}  # TIES: the paper's k = 20


@dataclass(frozen=True)
class Recipe:
    """How to combine: one weight an adapter; the rank of the result (None: the ranks added); density of TIES and DARE
    (share of the entries that stay), and the seed of those that DARE drops."""

    method: Method
    weights: tuple[float, ...]
    rank: int | None = None
    density: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Loss:
    """What combining lost, over all modules. Shares are of squared Frobenius norms.

    moved: ‖result - weighted sum‖ / ‖weighted sum‖. cut: share of the combined update that the rank cut off.
    dropped: share of each adapter's update in the entries that TIES or DARE dropped. conflicts: share of the entries
    with several non-zero values whose signs differ (TIES).
    """

    moved: float
    cut: float
    dropped: tuple[float, ...] = ()
    conflicts: float | None = None


@dataclass(frozen=True)
class Combined:
    """The result: module path → factors, all of one rank, and what was lost."""

    factors: dict[str, Factors]
    rank: int
    loss: Loss


def combine(
    adapters: Sequence[Mapping[str, Factors]], recipe: Recipe, progress: Callable[[int, int], None] | None = None
) -> Combined:
    """Combine the updates, module by module; an adapter without a module adds nothing to it.

    Source: task arithmetic (arXiv 2212.04089); TIES (arXiv 2306.01708), algorithm 1, trimmed a module at a time; DARE
    (arXiv 2311.03099), equation 3. TIES and DARE need every entry of ΔW and are cut to the rank by its singular
    values afterwards.
    """
    paths = list(dict.fromkeys(path for adapter in adapters for path in adapter))
    keys = mx.random.split(mx.random.key(recipe.seed), max(len(paths), 1))
    sums, found = _Sums(len(adapters)), dict[str, Factors]()
    for place, (path, key) in enumerate(zip(paths, keys, strict=True)):
        parts = [(index, adapter[path]) for index, adapter in enumerate(adapters) if path in adapter]
        found[path] = _combine_module(parts, recipe, key, sums)
        if progress is not None:
            progress(place + 1, len(paths))
    rank = recipe.rank or max(factors.rank for factors in found.values())
    return Combined({path: widen(factors, rank) for path, factors in found.items()}, rank, sums.loss(recipe))


def _combine_module(parts: list[tuple[int, Factors]], recipe: Recipe, key: mx.array, sums: "_Sums") -> Factors:
    total = add([(recipe.weights[index], factors) for index, factors in parts])
    if recipe.method == "linear":
        return total
    rank = recipe.rank or max(factors.rank for _, factors in parts)
    if recipe.method == "svd":
        short = cut(total, rank)
        sums.add_cut(short, short.whole - short.kept, short.whole)
        return short.factors
    experts = []
    for expert, expert_key in enumerate(mx.random.split(key, total.shape[0])):  # one expert's ΔW in memory at a time
        updates = [(index, recipe.weights[index] * _expert(factors, expert).update) for index, factors in parts]
        plain = _expert(total, expert).update
        merged = _ties(updates, recipe, sums) if recipe.method == "ties" else _dare(updates, recipe, expert_key, sums)
        short = factorize(merged, rank)
        sums.add_cut(short, _squares(short.factors.update - plain), _squares(plain))
        experts.append(short.factors)
    return Factors(
        mx.concatenate([one.a for one in experts]), mx.concatenate([one.b for one in experts]), total.of_experts
    )


def _ties(updates: list[tuple[int, mx.array]], recipe: Recipe, sums: "_Sums") -> mx.array:
    """Trim each update to its largest entries, elect a sign an entry, and take the mean of those that agree.

    The mean is weighted and times the sum of the weights, so that without trimming and conflicts it is the plain sum.
    """
    with mx.stream(mx.cpu):
        trimmed = []
        for index, update in updates:
            kept = mx.where(mx.abs(update) >= _threshold(update, recipe.density), update, 0)
            sums.add_dropped(index, update, kept)
            trimmed.append(kept)
        stacked = mx.stack(trimmed)
        signs = mx.sign(stacked)
        elected = mx.sign(stacked.sum(axis=0))
        shares = mx.abs(mx.array([recipe.weights[index] for index, _ in updates]))[:, None, None, None]
        agree = mx.where((signs == elected) & (signs != 0), shares, 0)
        sums.add_conflicts(signs)
        total = mx.where(agree > 0, stacked, 0).sum(axis=0)
        return total / mx.maximum(agree.sum(axis=0), 1e-30) * shares.sum()


def _dare(updates: list[tuple[int, mx.array]], recipe: Recipe, key: mx.array, sums: "_Sums") -> mx.array:
    """Drop entries at random, scale the others up so that the expectation stays, and add."""
    with mx.stream(mx.cpu):
        total = mx.zeros_like(updates[0][1])
        keys = mx.random.split(key, max(index for index, _ in updates) + 1)
        for index, update in updates:
            kept = mx.where(mx.random.bernoulli(recipe.density, update.shape, key=keys[index]), update, 0)
            sums.add_dropped(index, update, kept)
            total = total + kept / recipe.density
        return total


def _threshold(update: mx.array, density: float) -> mx.array:
    """The magnitude that a share `density` of the entries reach."""
    size = int(update.size)
    dropped = size - max(1, round(density * size))
    return mx.partition(mx.abs(update).flatten(), dropped)[dropped] if dropped else mx.array(0.0)


def _expert(factors: Factors, index: int) -> Factors:
    return Factors(factors.a[index : index + 1], factors.b[index : index + 1], factors.of_experts)


def _squares(values: mx.array) -> float:
    with mx.stream(mx.cpu):
        return float(mx.square(values.astype(mx.float64)).sum())


class _Sums:
    """Squared norms over modules, from which Loss is made."""

    def __init__(self, adapters: int) -> None:
        self._moved = self._plain = self._whole = self._kept = 0.0
        self._dropped = [[0.0, 0.0] for _ in range(adapters)]
        self._conflicts = self._shared = 0

    def add_cut(self, short: Cut, moved: float, plain: float) -> None:
        """moved: ‖result - weighted sum‖², plain: ‖weighted sum‖²."""
        self._moved += moved
        self._plain += plain
        self._whole += short.whole
        self._kept += short.kept

    def add_dropped(self, adapter: int, update: mx.array, kept: mx.array) -> None:
        whole = _squares(update)
        self._dropped[adapter][0] += whole - _squares(kept)
        self._dropped[adapter][1] += whole

    def add_conflicts(self, signs: mx.array) -> None:
        positive, negative = (signs > 0).sum(axis=0), (signs < 0).sum(axis=0)
        self._conflicts += int(((positive > 0) & (negative > 0)).sum())
        self._shared += int((positive + negative > 1).sum())

    def loss(self, recipe: Recipe) -> Loss:
        entries = recipe.method in DENSITIES
        return Loss(
            moved=max(self._moved, 0.0) ** 0.5 / self._plain**0.5 if self._plain else 0.0,
            cut=max(1 - self._kept / self._whole, 0.0) if self._whole else 0.0,
            dropped=tuple(lost / whole if whole else 0.0 for lost, whole in self._dropped) if entries else (),
            conflicts=self._conflicts / max(self._shared, 1) if recipe.method == "ties" else None,
        )
