"""Python's peer: the same steps as `peer/src/peer.rs`, on `snakepit_shm`.

python -m chaos.peer NAMESPACE DIR UID SEED PAUSE_US
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
import threading
import time
import zlib
from dataclasses import dataclass, field
from typing import Any

import snakepit_shm as shm

from . import value
from .records import CODES, SEGMENTS, Kind, Step, capacity, integrity, segment_name, slots

_RECORD = struct.Struct("<HHIIIQQQQQII")


@dataclass
class Writing:
    """A segment that this peer writes; an empty mirror means that its value is unknown."""

    writer: shm.Writer
    tag: int
    mirror: bytearray = field(default_factory=bytearray)
    sealed: bool = False


class Peer:
    """Creates, takes over, writes, patches, lends, seals, reads, waits, hands over."""

    def __init__(self, namespace: str, folder: str, uid: int, seed: int) -> None:
        self.place: dict[str, Any] = {"namespace": namespace, "dir": folder}
        self.uid = uid
        self.rng = random.Random(seed)
        self.created = 0
        self.writers: dict[int, Writing] = {}
        self.readers: dict[int, shm.Reader] = {}
        self.buffer = bytearray(1 << 20)
        self.out = os.dup(1)

    def put(self, kind: Kind, **about: int) -> None:
        """Sends a record by one system call."""
        get = about.get
        record = _RECORD.pack(
            kind, get("code", 0), self.uid, get("seg", 0), get("len", 0), get("t0", 0),
            get("t1", 0) or time.monotonic_ns(), get("tag", 0), get("version", 0), get("aux", 0),
            get("crc", 0), 0,
        )  # fmt: skip
        try:
            os.write(self.out, record)
        except BrokenPipeError:
            os._exit(0)  # the orchestrator has ended

    def error(self, step: Step, error: shm.ShmError, **about: int) -> None:
        """Sends what a step answered."""
        code = CODES.index(error.code) if error.code in CODES else 0xFFFF
        if code not in (0, 1, 8, 13, 17, 19, 21, 22):
            print(f"peer {self.uid} step {step}: {error}", file=sys.stderr, flush=True)
        self.put(Kind.ERROR, **{**about, "code": code, "aux": step})

    @staticmethod
    def about(seg: int, tag: int = 0) -> dict[str, int]:
        """The fields that a step's records share."""
        return {"seg": seg, "tag": tag, "t0": time.monotonic_ns()}

    def step(self) -> None:
        """One step, as the seed says."""
        seg, roll = self.rng.randrange(SEGMENTS), self.rng.randrange(100)
        held = self.rng.choice(sorted(self.writers)) if self.writers else None
        if roll < 10 and len(self.writers) < 3 and seg not in self.writers:
            if self.rng.random() < 0.5 or not self.take_over(seg):
                self.create(seg)
        elif 10 <= roll < 40 and held is not None:
            for _ in range(self.rng.randint(1, 6)):
                if held in self.writers:
                    self.write(held)
        elif 40 <= roll < 44 and held is not None:
            self.give(held, close=roll == 43)
        elif roll == 44 and held is not None and self.rng.random() < 0.25:
            self.seal(held)
        elif 45 <= roll < 49:
            if self.readers:
                self.detach(self.rng.choice(sorted(self.readers)))
        elif roll == 49:
            self.look()
        elif 50 <= roll < 62:
            self.wait(seg)
        else:
            for _ in range(self.rng.randint(1, 4)):
                self.read(seg)
            if seg in self.readers and self.rng.random() < 0.3:
                self.detach(seg)

    # --- writing ---

    def create(self, seg: int) -> None:
        """Creates a segment, unless there is one."""
        self.created += 1
        tag = self.uid << 32 | self.created
        about = self.about(seg, tag)
        self.put(Kind.CLAIM_BEGIN, **about)
        try:
            writer = shm.create(
                segment_name(seg), capacity(seg), slots=slots(seg), schema_id=tag,
                integrity=integrity(seg), **self.place,
            )  # fmt: skip
        except shm.ShmError as error:
            self.error(Step.CREATE, error, **about)
        else:
            self.put(Kind.CLAIMED, **about, aux=writer.generation)
            self.writers[seg] = Writing(writer, tag)

    def take_over(self, seg: int) -> bool:
        """Takes a segment over, if its writer has gone; returns whether there was one."""
        if not self.attach(seg):
            return False
        tag = self.readers[seg].schema_id
        about = self.about(seg, tag)
        self.put(Kind.CLAIM_BEGIN, **about, aux=1)
        try:
            writer = shm.attach_writer(segment_name(seg), schema_id=tag, **self.place)
        except shm.ShmError as error:
            self.error(Step.CLAIM, error, **about)
            if error.code in ("schema_mismatch", "not_found", "closed", "sealed"):
                self.detach(seg)
        else:
            self.put(Kind.CLAIMED, **about, aux=writer.generation, version=writer.version)
            self.writers[seg] = Writing(writer, tag, bytearray(self.read(seg) or b""))
        return True

    def write(self, seg: int) -> None:
        """Publishes a value: whole, patched, or filled in place."""
        held = self.writers[seg]
        if held.sealed:
            if self.rng.random() < 0.25:
                self.give(seg, close=True)
            return
        version, how, change = held.writer.version + 2, self.rng.randrange(3), None
        if how == 0 and held.mirror:
            change = value.patch(self.rng, seg, held.mirror)
        else:
            held.mirror = value.whole(self.rng, seg, held.tag, version, self.uid)
        crc = zlib.crc32(held.mirror)
        about = {**self.about(seg, held.tag), "version": version, "aux": how}
        about |= {"len": len(held.mirror), "crc": crc}
        self.put(Kind.INTENT, **about)
        try:
            if change is not None:
                found = held.writer.write_at(*change)
            elif how == 1 and slots(seg) > 1:
                with held.writer.loan(len(held.mirror)) as array:
                    array[:] = held.mirror
                found = held.writer.version
            else:
                found = held.writer.write(held.mirror)
        except shm.ShmError as error:
            held.mirror = bytearray()
            self.error(Step.WRITE, error, **about)
        else:
            kind = Kind.PUBLISHED if found == version else Kind.BAD
            self.put(kind, **{**about, "aux": 100, "version": found})

    def seal(self, seg: int) -> None:
        """Makes the present value the last."""
        held = self.writers[seg]
        if held.sealed:
            return
        about = self.about(seg, held.tag)
        self.put(Kind.SEAL_BEGIN, **about)
        try:
            held.writer.seal()
        except shm.ShmError as error:
            self.error(Step.SEAL, error, **about)
        else:
            held.sealed = True
            self.put(Kind.SEALED, **about)

    def give(self, seg: int, *, close: bool) -> None:
        """Ends a segment, or leaves it to another writer."""
        held = self.writers.pop(seg)
        about = {**self.about(seg, held.tag), "aux": int(close)}
        self.put(Kind.GIVE_BEGIN, **about)
        try:
            held.writer.close() if close else held.writer.release()
        except shm.ShmError as error:
            self.error(Step.GIVE, error, **about)
        self.put(Kind.GIVEN, **about)

    # --- reading ---

    def attach(self, seg: int) -> bool:
        """Returns whether this peer is attached."""
        if seg in self.readers:
            return True
        about = self.about(seg)
        self.put(Kind.ATTACH_BEGIN, **about)
        try:
            reader = shm.attach(segment_name(seg), **self.place)
        except shm.ShmError as error:
            self.error(Step.ATTACH, error, **about)
            return False
        self.put(Kind.ATTACHED, **{**about, "tag": reader.schema_id})
        self.readers[seg] = reader
        return True

    def detach(self, seg: int) -> None:
        """Detaches."""
        reader = self.readers.pop(seg)
        about = self.about(seg, reader.schema_id)
        self.put(Kind.DETACH_BEGIN, **about)
        try:
            reader.close()
        except shm.ShmError as error:
            self.error(Step.DETACH, error, **about)
        self.put(Kind.DETACHED, **about)

    def read(self, seg: int) -> bytes | None:
        """Reads by one of the ways that there are, and checks."""
        if not self.attach(seg):
            return None
        reader = self.readers[seg]
        about = self.about(seg, reader.schema_id)
        way = self.rng.randrange(3)
        try:
            if way == 0:
                found = reader.read()
            elif way == 1:
                found = bytes(self.buffer[: reader.read_into(self.buffer)])
            else:
                found = reader.numpy().tobytes()
            # Of a view of a sealed value the binding does not say the version.
            version = 0 if reader.is_sealed else reader.last_version
        except shm.ShmError as error:
            self.error(Step.READ, error, **about)
            self.leave_ended(seg)
            return None
        about |= {"t1": time.monotonic_ns(), "version": version}
        about |= {"len": len(found), "crc": zlib.crc32(found)}
        bad = value.fault(found, seg, reader.schema_id)
        self.put(Kind.BAD if bad else Kind.READ, **about, aux=bad)
        self.leave_ended(seg)
        return found

    def leave_ended(self, seg: int) -> None:
        """Detaches from a segment that has ended, so that its name becomes free."""
        reader = self.readers[seg]
        try:
            reader.wait(reader.version, timeout=0.0)
        except (shm.ClosedError, shm.SealedError):
            self.detach(seg)
        except shm.TimeoutError:
            pass  # it may change

    def wait(self, seg: int) -> None:
        """Sleeps until there is something newer."""
        if not self.attach(seg):
            return
        reader = self.readers[seg]
        since = reader.last_version
        about = {**self.about(seg, reader.schema_id), "aux": since}
        try:
            found = reader.wait(since, timeout=self.rng.uniform(0.001, 0.04))
        except shm.ShmError as error:
            self.error(Step.WAIT, error, **about)
            if error.code in ("closed", "sealed"):
                self.detach(seg)
        else:
            self.put(Kind.WAITED, **about, version=found)

    def look(self) -> None:
        """Lists, or cleans up."""
        about = self.about(0)
        try:
            if self.rng.random() < 0.5:
                shm.list_segments(**self.place)
            else:
                shm.cleanup(**self.place)
        except shm.ShmError as error:
            self.error(Step.LOOK, error, **about)

    def leave(self) -> None:
        """Gives everything back."""
        for seg in list(self.readers):
            self.detach(seg)
        for seg in list(self.writers):
            self.give(seg, close=True)


def main(namespace: str, folder: str, uid: str, seed: str, pause_us: str) -> None:
    """Goes on until stdin ends or SIGTERM comes; then gives everything back."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())

    def until_stdin() -> None:
        while os.read(0, 1):
            pass
        stop.set()

    threading.Thread(target=until_stdin, daemon=True).start()
    peer = Peer(namespace, folder, int(uid), int(seed))
    while not stop.wait(peer.rng.uniform(0, 2e-6 * int(pause_us))):
        peer.step()
    peer.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
