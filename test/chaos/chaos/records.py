"""The records that peers send: 64 bytes each, see `peer/src/record.rs`."""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np

DTYPE = np.dtype(
    [
        ("kind", "<u2"),
        ("code", "<u2"),
        ("uid", "<u4"),
        ("seg", "<u4"),
        ("len", "<u4"),
        ("t0", "<u8"),
        ("t1", "<u8"),
        ("tag", "<u8"),
        ("version", "<u8"),
        ("aux", "<u8"),
        ("crc", "<u4"),
        ("unused", "<u4"),
    ]
)
SIZE = DTYPE.itemsize


class Kind(enum.IntEnum):
    """What a record tells of. `*_BEGIN` and `INTENT` are sent before the step, others after it."""

    INTENT = 1
    PUBLISHED = 2
    READ = 3
    CLAIM_BEGIN = 4
    CLAIMED = 5
    GIVE_BEGIN = 6
    GIVEN = 7
    ATTACH_BEGIN = 8
    ATTACHED = 9
    DETACH_BEGIN = 10
    DETACHED = 11
    SEAL_BEGIN = 12
    SEALED = 13
    ERROR = 14
    BAD = 15
    WAITED = 16


class Step(enum.IntEnum):
    """Which step an `ERROR` is of."""

    CREATE = 1
    CLAIM = 2
    WRITE = 3
    READ = 4
    WAIT = 5
    ATTACH = 6
    GIVE = 7
    DETACH = 8
    SEAL = 9
    LOOK = 10


CODES = (
    "already_exists not_found invalid_name invalid_size invalid_option invalid_handle "
    "version_conflict torn empty permission_denied resource_exhausted deadline_violation io "
    "segment_busy out_of_bounds corrupted truncated sealed not_sealed schema_mismatch stale "
    "timeout closed unsupported"
).split()

SEGMENTS = 12


def code_name(code: int) -> str:
    """The stable error code of a number."""
    return CODES[code] if code < len(CODES) else "unknown"


def segment_name(seg: int) -> str:
    """Names that are prefixes of one another."""
    return f"s-{seg // 2}" if seg % 2 == 0 else f"s-{seg // 2}_data"


def capacity(seg: int) -> int:
    """Capacity of a segment in bytes."""
    return (4096, 16_384, 65_536, 262_144, 1 << 20)[seg % 5]


def slots(seg: int) -> int:
    """Slots of a segment."""
    return 1 + seg % 4


def integrity(seg: int) -> str:
    """Whether the values of a segment carry a checksum."""
    return "crc32c" if seg % 3 == 0 else "none"


class Record(NamedTuple):
    """One record, as Python numbers."""

    kind: int
    code: int
    uid: int
    seg: int
    len: int
    t0: int
    t1: int
    tag: int
    version: int
    aux: int
    crc: int
    unused: int


def parse(data: bytes) -> list[Record]:
    """All records in `data`, whose length is a multiple of `SIZE`."""
    return [Record(*fields) for fields in np.frombuffer(data, DTYPE).tolist()]
