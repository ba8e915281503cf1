"""Quantisation: a few token counts that follow a ratio curve, each of which can be one compiled graph.

Counts lie on a lattice: what a method can remove (a quantum), so that what is kept is a multiple that suits
the hardware. The steps, sorted by what they ask for, are cut into runs with one count each (an optimal
one-dimensional quantiser, by dynamic programming); then the cuts move until the mean cost is the curve's.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

TOLERANCE = 0.01
"""Largest accepted relative error of the mean cost; a finer lattice is tried beyond it."""

_AIM = 0.005  # within this error, what follows the curve best wins
_SHIFTS = (0.0, 0.125, -0.125, 0.25, -0.25, 0.375, -0.375, 0.5, -0.5)  # of the curve, in lattice spacings
_MOVES = {1: 3, 2: 3, 3: 2, 4: 2, 5: 1, 6: 1}  # how far each of that many cuts may move


@dataclass(frozen=True)
class Demand:
    """What the curve asks of one step.

    Attributes:
        wanted: Number of tokens to remove; need not be whole.
        capacity: Most tokens that the step's method can remove.
        cost: Cost of the step, by number of tokens removed.
    """

    wanted: float
    capacity: int
    cost: Callable[[int], float]


@dataclass(frozen=True)
class Fit:
    """Quantised counts.

    Attributes:
        counts: Number of tokens removed, for every demand in order; 0 is dense.
        multiple: Every kept count of a merged step is a multiple of this.
        error: Relative error of the total cost, signed.
        deviation: Sum of squared differences to what was wanted.
    """

    counts: tuple[int, ...]
    multiple: int
    error: float
    deviation: float


def lattice(tokens: int, capacity: int, quantum: int, multiple: int) -> tuple[int, ...]:
    """Return the positive counts, ascending, that can be removed and leave a multiple of `multiple`.

    Args:
        tokens: Number of tokens N.
        capacity: Most tokens that can be removed.
        quantum: Removed counts are multiples of this.
        multiple: Kept counts are multiples of this.
    """
    return tuple(n for n in range(quantum, capacity + 1, quantum) if (tokens - n) % multiple == 0)


def multiples(round_to: int) -> tuple[int, ...]:
    """Return `round_to` and then the powers of two below it, descending to 1."""
    powers = [1 << bit for bit in range(round_to.bit_length()) if 1 << bit < round_to]
    return (round_to, *reversed(powers))


def within_reach(wanted: float, allowed: Sequence[int], tokens: int) -> bool:
    """Say whether some allowed count lies within an eighth of the tokens of `wanted`."""
    return bool(allowed) and abs(_nearest(allowed, wanted) - wanted) <= tokens / 8


def quantise(demands: Sequence[Demand], *, tokens: int, quantum: int, round_to: int, levels: int) -> Fit:
    """Choose at most `levels` counts and which step takes which.

    Steps that ask for more never get less than steps that ask for less, so a monotone curve stays monotone.
    Kept counts are multiples of `round_to` where that lattice has a count near every demand and keeps the
    cost within `TOLERANCE`; otherwise of the first lower power of two that does, or that does best.

    Args:
        demands: One per step, in any order, each within its capacity.
        tokens: Number of tokens N.
        quantum: Removed counts are multiples of this.
        round_to: Kept counts are multiples of this, where possible.
        levels: Most distinct counts, 0 among them.

    Returns:
        The counts. `error` is within `TOLERANCE` unless the steps are too few to share the error out.
    """
    if not demands:
        return Fit((), round_to, 0.0, 0.0)
    capacity = max(demand.capacity for demand in demands)
    best: Fit | None = None
    for multiple in multiples(round_to):
        allowed = lattice(tokens, capacity, quantum, multiple)
        if multiple > 1 and not all(within_reach(demand.wanted, allowed, tokens) for demand in demands):
            continue
        fit = _fit(demands, (0, *allowed), levels, multiple)
        if best is None or abs(fit.error) < abs(best.error):
            best = fit
        if abs(best.error) <= TOLERANCE:
            break
    assert best is not None  # the multiple 1 is never passed over
    return best


def _nearest(ascending: Sequence[int], value: float) -> int:
    above = bisect_left(ascending, value)
    candidates = ascending[max(above - 1, 0) : above + 1]
    return min(candidates, key=lambda count: abs(count - value))


def _fit(demands: Sequence[Demand], allowed: Sequence[int], levels: int, multiple: int) -> Fit:
    order = sorted(range(len(demands)), key=lambda index: (-demands[index].wanted, index))
    steps = _SortedSteps([demands[index] for index in order], allowed)
    fits: list[tuple[float, float, tuple[int, ...]]] = []
    for shift in _SHIFTS:
        cuts, counts = steps.partition(min(levels, len(demands)), shift * steps.spacing)
        for moved in _moved(cuts):
            if steps.possible(moved, counts):
                fits.append(
                    (steps.deviation(moved, counts), steps.error(moved, counts), steps.spread(moved, counts))
                )
    close = [fit for fit in fits if abs(fit[1]) <= _AIM]
    deviation, error, spread = min(close) if close else min(fits, key=lambda fit: (abs(fit[1]), fit[0]))
    by_step = dict(zip(order, spread, strict=True))
    return Fit(tuple(by_step[index] for index in range(len(demands))), multiple, error, deviation)


def _moved(cuts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield `cuts` with every interior cut moved a little, the unmoved ones among them."""
    reach = _MOVES.get(len(cuts) - 2, 0)
    for offsets in itertools.product(range(-reach, reach + 1), repeat=len(cuts) - 2):
        moved = (cuts[0], *(cut + offset for cut, offset in zip(cuts[1:-1], offsets, strict=True)), cuts[-1])
        if all(a <= b for a, b in itertools.pairwise(moved)):
            yield moved


class _SortedSteps:
    """Demands in descending order, with the prefix sums that make runs of them cheap.

    `cuts` are positions 0 = c0 <= c1 <= ... = len; run k is [c_k, c_{k+1}) and takes `counts[k]`.
    """

    def __init__(self, demands: Sequence[Demand], allowed: Sequence[int]) -> None:
        self.demands = demands
        self.allowed = allowed
        wanted = [demand.wanted for demand in demands]
        self._sum = _prefix(wanted)
        self._squares = _prefix([value * value for value in wanted])
        self._target = sum(_between(demand) for demand in demands)
        self._costs: dict[int, list[float]] = {}
        self.spacing = self._largest_gap(wanted)

    def partition(self, levels: int, shift: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return cuts and counts of the best fit, in least squares, to the curve moved by `shift` tokens."""
        size = len(self.demands)
        runs = [[self._run(a, b, shift) for b in range(size + 1)] for a in range(size)]
        best: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(float("inf"), 0)] * size]
        for _ in range(levels):
            previous = best[-1]
            ends = range(1, size + 1)
            best.append(
                [(0.0, 0)] + [min((previous[a][0] + runs[a][b][0], a) for a in range(b)) for b in ends]
            )
        used = min(range(1, levels + 1), key=lambda k: best[k][size][0])
        cuts = [size]
        for k in range(used, 0, -1):
            cuts.append(best[k][cuts[-1]][1])
        cuts.reverse()
        counts = [runs[a][b][1] for a, b in itertools.pairwise(cuts)]
        starts = [k for k, count in enumerate(counts) if k == 0 or count != counts[k - 1]]  # join equal runs
        return (*(cuts[k] for k in starts), size), tuple(counts[k] for k in starts)

    def possible(self, cuts: tuple[int, ...], counts: tuple[int, ...]) -> bool:
        """Say whether every step can remove the count of its run."""
        return all(count <= self._capacity(a, b) for (a, b), count in _runs(cuts, counts))

    def deviation(self, cuts: tuple[int, ...], counts: tuple[int, ...]) -> float:
        """Return the sum of squared differences to what was wanted."""
        return sum(self._deviation(a, b, count) for (a, b), count in _runs(cuts, counts))

    def error(self, cuts: tuple[int, ...], counts: tuple[int, ...]) -> float:
        """Return the relative error of the total cost."""
        total = sum(self._cost(count)[b] - self._cost(count)[a] for (a, b), count in _runs(cuts, counts))
        return total / self._target - 1.0 if self._target > 0 else 0.0

    def spread(self, cuts: tuple[int, ...], counts: tuple[int, ...]) -> tuple[int, ...]:
        """Return the count of every step."""
        return tuple(count for (a, b), count in _runs(cuts, counts) for _ in range(a, b))

    def _run(self, a: int, b: int, shift: float) -> tuple[float, int]:
        """Return the deviation from the moved curve, and the count, of the best single count for [a, b)."""
        if b <= a:
            return float("inf"), 0
        length = b - a
        target = (self._sum[b] - self._sum[a]) / length + shift
        reachable = self.allowed[: bisect_left(self.allowed, self._capacity(a, b) + 1)]
        count = _nearest(reachable, target)
        scatter = self._squares[b] - self._squares[a] - (self._sum[b] - self._sum[a]) ** 2 / length
        return scatter + length * (target - count) ** 2, count

    def _capacity(self, a: int, b: int) -> int:
        return min((demand.capacity for demand in self.demands[a:b]), default=self.demands[0].capacity)

    def _deviation(self, a: int, b: int, count: int) -> float:
        wanted, squares = self._sum[b] - self._sum[a], self._squares[b] - self._squares[a]
        return squares - 2 * count * wanted + (b - a) * count * count

    def _cost(self, count: int) -> list[float]:
        if count not in self._costs:
            self._costs[count] = _prefix([demand.cost(count) for demand in self.demands])
        return self._costs[count]

    def _largest_gap(self, wanted: list[float]) -> float:
        low = max(bisect_left(self.allowed, wanted[-1]) - 1, 0)
        high = bisect_left(self.allowed, wanted[0]) + 1
        near = self.allowed[low:high]
        return float(max((b - a for a, b in itertools.pairwise(near)), default=0))


def _between(demand: Demand) -> float:
    """Return the cost of a count that need not be whole."""
    below = int(demand.wanted)
    part = demand.wanted - below
    return demand.cost(below) * (1 - part) + (demand.cost(below + 1) * part if part else 0.0)


def _prefix(values: list[float]) -> list[float]:
    return [0.0, *itertools.accumulate(values)]


def _runs(cuts: tuple[int, ...], counts: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], int]]:
    return zip(itertools.pairwise(cuts), counts, strict=True)
