"""The values of a segment as a stream."""

from __future__ import annotations

import subprocess

import pytest

import snakepit_shm as shm
from conftest import Place


def test_a_reader_that_keeps_up_has_every_value(place: Place) -> None:
    with place.create(slots=4) as writer, place.attach() as reader:
        assert reader.read_next() is None
        for n in range(1, 100):
            value = bytes([n]) * (1 + 37 * n % 4096)
            writer.write(value)
            if n % 3 == 0:
                found = [reader.read_next() for _ in range(3)]
                assert [missed for _, missed in filter(None, found)] == [0, 0, 0]
                assert [data[0] for data, _ in filter(None, found)] == [n - 2, n - 1, n]
                assert found[2] == (value, 0)
                assert reader.read_next() is None
        assert reader.last_version == 2 * 99


def test_a_reader_that_falls_behind_is_told(place: Place) -> None:
    with place.create(slots=2, integrity="crc32c") as writer, place.attach() as reader:
        for n in range(10):
            writer.write(bytes([n]))
        assert reader.read_next() == (b"\x08", 8)
        assert reader.read_next() == (b"\x09", 0)
        assert reader.read_next() is None
        writer.write(b"plain read")
        assert reader.read() == b"plain read"
        assert reader.read_next() is None


def test_the_stream_of_another_process(
    place: Place, processes: list[subprocess.Popen[str]]
) -> None:
    process = place.start(
        """
        import snakepit_shm as shm
        with shm.create("it", 4096, slots=8) as writer:
            print("ready", flush=True)
            input()
            for n in range(2000):
                writer.write(b"%d" % n)
            print("done", flush=True)
            input()
        """
    )
    processes.append(process)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    had = missed = 0
    with place.attach() as reader:
        process.stdin.write("go\n")
        process.stdin.flush()
        while had + missed < 2000:
            found = reader.read_next()
            if found is None:
                reader.wait(reader.last_version, timeout=30)
                continue
            data, skipped = found
            missed += skipped
            assert int(data) == had + missed
            had += 1
    assert process.stdout.readline() == "done\n"
    process.communicate("end\n", timeout=60)
    assert process.returncode == 0
    assert had + missed == 2000
    assert had >= 8


def test_a_closed_reader_says_so(place: Place) -> None:
    with place.create() as writer:
        reader = place.attach()
        reader.close()
        writer.write(b"x")
        with pytest.raises(shm.ClosedError):
            reader.read_next()
