"""Memory under segments: huge pages, prefaulted ones, nodes, mappings that children do not have."""

from __future__ import annotations

import os
from typing import Any

import pytest

import snakepit_shm as shm
from conftest import Place

SIZE = 8 << 20


def pages(place: Place, name: str = "it") -> dict[str, Any]:
    report: dict[str, Any] = shm.inspect(name, pages=True, **place.where)["pages"]
    return report


def test_capabilities_are_what_the_machine_does(place: Place) -> None:
    found = shm.capabilities(place.dir)
    assert found.page_size >= 4096
    assert found.space_total >= found.space_available > 0
    assert found.file_locks
    assert os.listdir(place.dir) == []
    with pytest.raises(shm.IoError):
        shm.capabilities(place.dir / "nowhere")


@pytest.mark.parametrize("asked", [True, "require"])
def test_huge_pages_are_there_or_refused_by_name(place: Place, asked: Any) -> None:
    if not shm.capabilities(place.dir).huge_pages_possible:
        with pytest.raises((shm.InvalidOptionError, shm.ResourceExhaustedError), match="huge"):
            place.create(size=SIZE, slots=1, huge_pages=asked)
        return
    with place.create(size=SIZE, slots=1, huge_pages=asked) as writer:
        value = os.urandom(SIZE)
        writer.write(value)
        found = pages(place)
        assert found["huge_asked"]
        assert found["huge"] == found["huge_possible"] > 0
        with place.attach(prefault=True) as reader:
            assert reader.read() == value


def test_preferred_huge_pages_are_told(place: Place) -> None:
    for size in (4096, SIZE):
        with place.create(size=size, huge_pages="prefer") as writer:
            writer.write(b"x")
            found = pages(place)
            assert found["huge_asked"]
            assert 0 <= found["huge"] <= found["huge_possible"] <= found["bytes"]
            assert "pages" not in shm.inspect("it", **place.where)


def test_what_is_not_asked_for_is_not_said_to_be(place: Place) -> None:
    with place.create(huge_pages=False, prefault=True, dont_fork=False):
        assert not pages(place)["huge_asked"]


def test_large_objects_are_shared_in_huge_pages_where_there_are_some(place: Place) -> None:
    for nbytes, options, asked in [
        (SIZE, {}, True),
        (SIZE, {"huge_pages": False}, False),
        (1 << 20, {}, False),
    ]:
        handle = place.share(bytes(nbytes), **options)
        found = pages(place, handle["name"])
        assert found["huge_asked"] == asked
        if asked and shm.capabilities(place.dir).huge_pages_possible:
            assert found["huge"] > 0
        place.release(handle)


BAD: list[dict[str, Any]] = [
    {"huge_pages": "always"}, {"huge_pages": 1}, {"huge_pages": True, "size": 4096},
    {"huge_pages": True, "size": SIZE, "reserve": "lazy"}, {"numa": "spread"}, {"numa": []},
    {"numa": 4095}, {"numa": [0, 4095]}, {"numa": ("interleave", [4095])}, {"numa": ("bind", [0])},
    {"numa": -1}, {"numa": 0.5}, {"dont_fork": 1}, {"prefault": True, "reserve": "lazy"},
]  # fmt: skip


@pytest.mark.parametrize("options", BAD, ids=repr)
def test_what_a_machine_cannot_do_is_named(place: Place, options: dict[str, Any]) -> None:
    with pytest.raises(shm.InvalidOptionError, match=next(iter(options))) as caught:
        place.create(**options)
    assert caught.value.remedy
    assert os.listdir(place.dir) == []


def test_pages_come_from_the_nodes_that_are_named(place: Place) -> None:
    nodes = shm.capabilities(place.dir).numa_nodes
    if not nodes:
        pytest.skip("NOT RUN: this kernel has no NUMA, or does not tell")
    first = nodes[0]
    for numa, policy in [
        (first, f"bind:{first}"),
        ([first], f"bind:{first}"),
        (("interleave", [first]), f"interleave:{first}"),
        ("interleave", "interleave:"),
    ]:
        with place.create(size=1 << 20, numa=numa, prefault=True):
            found = pages(place)
            assert found["numa_policy"].startswith(policy)
            if policy != "interleave:":
                assert found["nodes"] == [{"node": first, "bytes": found["resident"]}]


FORK = """
    import os, numpy as np, snakepit_shm as shm
    writer = shm.create("w", 1 << 20, dont_fork=True)
    writer.write(np.ones(1000))
    reader = shm.attach("w", dont_fork=True)
    sealed = shm.create("s", 4096, slots=1)
    sealed.write(np.arange(10))
    sealed.seal()
    kept = shm.attach("s", dont_fork=True)
    view = kept.numpy()
    pid = os.fork()
    if pid == 0:
        try:
            for use in (reader.read, lambda: reader.wait(timeout=0.01), reader.info, reader.pin,
                        lambda: reader.read_into(bytearray(8000))):
                try:
                    use()
                except shm.NotInheritedError as error:
                    assert "dont_fork" in str(error), error
                else:
                    raise AssertionError("a child read what it does not have")
            try:
                writer.write(b"child")
            except shm.ShmError as error:
                assert error.code in ("closed", "not_inherited"), error
            else:
                raise AssertionError("a child wrote with its parent's claim")
            assert not view.any(), "zeros, and no fault"
            with shm.attach("w") as own:
                assert own.numpy().sum() == 1000
            reader.close()
        except BaseException:
            import traceback; traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    assert reader.numpy().sum() == 1000 and view.sum() == 45
    del view
    for opened in (kept, reader, sealed, writer):
        opened.close()
    print("fine")
"""


def test_a_forked_child_has_no_mapping_that_is_its_parents_alone(place: Place) -> None:
    assert place.run(FORK) == "fine\n"
    assert place.files() == []
