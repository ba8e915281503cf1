"""Where dense steps may lie: the patterns that a search starts from."""

from __future__ import annotations


def dense_patterns(steps: int, count: int) -> tuple[tuple[int, ...], ...]:
    """Ways to lay so many dense steps out, the first step always among them; no two are equal.

    They are spread evenly, without the last step and with it; all in front; in front but for the last; a third in
    front, the others spread evenly up to the last; and ever further apart, to two degrees.

    Args:
        steps: Denoising steps.
        count: Dense ones, from 1 to `steps`.
    """
    leading = tuple(range(count))
    candidates = [
        tuple(number * steps // count for number in range(count)),
        leading,
        (*leading[:-1], steps - 1),
        _led(steps, count, 1),
        _led(steps, count, count // 3),
        *(_receding(steps, count, degree) for degree in (1.5, 2.0)),
    ]
    unique = dict.fromkeys(
        pattern for pattern in candidates if len(set(pattern)) == count and pattern[0] == 0
    )
    return tuple(unique)


def _led(steps: int, count: int, front: int) -> tuple[int, ...]:
    """So many in front, and the others spread evenly from there to the last step."""
    behind = count - max(front, 1)
    begun = tuple(range(count - behind))
    gap = (steps - 1 - begun[-1]) / max(behind, 1)
    return (*begun, *(begun[-1] + round(number * gap) for number in range(1, behind + 1)))


def _receding(steps: int, count: int, degree: float) -> tuple[int, ...]:
    """Step i of `count` lies at (i / count) ** degree of all, but at least one behind the step before it."""
    found: list[int] = []
    for number in range(count):
        wanted = int((number / count) ** degree * steps)
        found.append(max(wanted, found[-1] + 1) if found else 0)
    return tuple(found)
