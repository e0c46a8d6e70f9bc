"""Values that say of themselves whether they are whole; the same as `peer/src/value.rs`."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from .records import capacity

MAGIC = 0x5341484356414C31
HEAD = 4
MASK = (1 << 64) - 1

Words = npt.NDArray[np.uint64]


def _noise(rng: random.Random, words: int) -> Words:
    return np.frombuffer(rng.randbytes(8 * words), np.uint64).copy()


def total(words: Words) -> int:
    """The sum of all words, modulo 2**64; 0 for a whole value."""
    return int(np.add.reduce(words, dtype=np.uint64))


def whole(rng: random.Random, seg: int, tag: int, version: int, uid: int) -> bytearray:
    """A whole value of some length."""
    longest = capacity(seg) // 8
    words = _noise(rng, rng.randint(HEAD + 2, longest))
    words[:HEAD] = (MAGIC, tag, version, uid << 32 | seg)
    words[-1] = 0
    words[-1] = -total(words) & MASK
    return bytearray(words.tobytes())


def patch(rng: random.Random, seg: int, value: bytearray) -> tuple[int, bytes]:
    """A patch for `value`, which is changed as the segment is going to be: where, and what."""
    room = capacity(seg) // 8
    offset = rng.randrange(HEAD, room - 2)
    data = _noise(rng, rng.randint(2, min(512, room - offset)))
    end = (offset + len(data)) * 8
    old = np.frombuffer(bytes(value[offset * 8 : end]), np.uint64)
    data[-1] = 0
    data[-1] = (total(old) - total(data)) & MASK
    if len(value) < end:
        value.extend(bytes(end - len(value)))
    value[offset * 8 : end] = data.tobytes()
    return offset * 8, data.tobytes()


def fault(value: bytes, seg: int, tag: int) -> int:
    """What is wrong with a value; 0 = nothing."""
    if len(value) % 8 or len(value) < 8 * (HEAD + 1):
        return 1
    words = np.frombuffer(value, np.uint64)
    if int(words[0]) != MAGIC:
        return 2
    if int(words[1]) != tag:
        return 3
    if int(words[3]) & 0xFFFFFFFF != seg:
        return 4
    return 5 if total(words) else 0
