"""Counter-based hashing: reproducible choices without a random number generator.

The same arithmetic serves Python ints and int64 tensors. Each multiplier is below 2**31 and each operand
below 2**32, so no product leaves int64 and the value is the same on every device and in compiled code.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Word = TypeVar("Word", int, Tensor, int | Tensor)

_MASK = 0xFFFFFFFF


def mix(value: Word) -> Word:
    """Scramble the low 32 bits of a value: a bijection on [0, 2**32) (xor-shift-multiply finaliser)."""
    value = value & _MASK
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & _MASK
    value = ((value ^ (value >> 15)) * 0x735A2D97) & _MASK
    return value ^ (value >> 15)


def combine(salt: int | Tensor, *parts: int | Tensor) -> int | Tensor:
    """Mix counters such as seed, step and layer into one salt in [0, 2**32); their order matters."""
    state: int | Tensor = _fold(salt)
    for part in parts:
        state = mix(mix(state) + _fold(part))
    return state


def hash_words(counter: Tensor, salt: int | Tensor) -> Tensor:
    """Return one word in [0, 2**32) per counter.

    Args:
        counter: int64 of any shape, the low 32 bits are used.
        salt: An int or a 0-d int64 tensor; all 64 bits are used.

    Returns:
        int64 of the shape of `counter`.
    """
    return mix(mix(counter + mix(_fold(salt))) + _fold(salt))


def hash_index(counter: Tensor, salt: int | Tensor, choices: int) -> Tensor:
    """Return a number in [0, choices) per counter, int64; `choices` is below 2**31."""
    return (hash_words(counter, salt) * choices) >> 32


def _fold(value: Word) -> Word:
    """Bring 64 bits down to 32; values below 2**32 keep their differences."""
    return (value & _MASK) ^ mix((value >> 32) & _MASK)
