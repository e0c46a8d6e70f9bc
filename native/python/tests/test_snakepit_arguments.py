"""Arguments of Snakepit's tools: what stands for something becomes it, or is named."""

from __future__ import annotations

import base64
import json
import sys
import types
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import snakepit_shm as shm
from conftest import Place
from snakepit_shm.snakepit import (
    ArgumentsNotResolvedError,
    shared_arguments,
)
from snakepit_stand_in import ZeroCopyRef
from tool_values import options, released, taken, text

pytestmark = pytest.mark.usefixtures("leave")


def test_handles_in_arguments_become_what_they_name_nested_too(place: Place) -> None:
    array = np.arange(6, dtype="f4").reshape(2, 3)
    table = pa.table({"a": [1, 2]})
    handles = [place.share(array), place.share(b"\xff\x00"), place.share(table)]
    seen: dict[str, Any] = {}

    @shared_arguments(options=options(place))
    def consume(first: Any, /, *, deep: Any, plain: Any) -> None:
        seen.update(first=first, deep=deep, plain=plain)

    plain = {"a": [1, {"b": None}]}
    consume(handles[0], deep={"list": [1, {"bytes": handles[1]}, [handles[2]]]}, plain=plain)
    assert seen["first"].tolist() == array.tolist()
    assert not seen["first"].flags.writeable
    assert bytes(seen["deep"]["list"][1]["bytes"]) == b"\xff\x00"
    assert seen["deep"]["list"][2][0].equals(table)
    assert seen["plain"] is plain
    seen.clear()
    released(place, *handles)


@pytest.mark.parametrize("depth", [10, 900])
def test_arguments_and_results_may_be_as_deep_as_json_can(place: Place, depth: int) -> None:
    handle = place.share(np.arange(3))
    deep: Any = {"here": handle}
    for n in range(depth):
        deep = [deep] if n % 2 else {"in": deep}

    @shared_arguments(options=options(place))
    def same(value: Any) -> Any:
        inner = value
        while "here" not in inner:
            inner = inner[0] if isinstance(inner, list) else inner["in"]
        assert inner["here"].tolist() == [0, 1, 2]
        return value

    answer = same(json.loads(json.dumps(deep)))
    for n in reversed(range(depth)):
        answer = answer[0] if n % 2 else answer["in"]
    assert taken(place, answer["here"]).tolist() == [0, 1, 2]
    released(place, handle)


def test_text_is_text_and_bytes_are_bytes(place: Place) -> None:
    sent = [text(place, "héllo".encode()), text(place, b"\xff\xfe"), place.share(b"plain")]

    @shared_arguments(options=options(place))
    def kinds(values: list[Any]) -> list[str]:
        return [type(value).__name__ for value in values]

    @shared_arguments(options=options(place, raw="bytes"))
    def as_bytes(values: list[Any]) -> list[str]:
        return [repr(value) for value in values]

    assert kinds(sent) == ["str", "memoryview", "memoryview"]
    assert as_bytes(sent) == ["'héllo'", r"b'\xff\xfe'", "b'plain'"]
    released(place, *(s.get("__snakepit_shm_text__", s) for s in sent))


def test_inline_values_are_what_they_were() -> None:
    array = np.arange(4, dtype="<i2").reshape(2, 2)
    inline = {
        "__snakepit_shm_inline__": 1,
        "base64": base64.b64encode(array.tobytes()).decode(),
        "dtype": "<i2",
        "shape": [2, 2],
        "format": "numpy",
        "reason": None,
    }
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [1]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    stream = base64.b64encode(sink.getvalue()).decode()
    forms = [
        inline,
        {**inline, "shape": None},
        {**inline, "dtype": None, "format": "raw"},
        {**inline, "format": "arrow_ipc", "base64": stream},
    ]
    seen: list[Any] = []
    shared_arguments(seen.extend)(forms)
    assert seen[0].tolist() == array.tolist()
    assert seen[1].tolist() == [0, 1, 2, 3]
    assert bytes(seen[2]) == array.tobytes()
    assert seen[3].equals(table)


HOSTILE: list[dict[str, Any]] = [
    {"__snakepit_shm__": 1},
    {"__snakepit_shm__": 1, "name": "../../etc/passwd", "namespace": "x"},
    {"__snakepit_shm_text__": {"__snakepit_shm__": 2}},
    {"__snakepit_shm_chunk__": {"__snakepit_shm__": None}},
    {"__snakepit_zero_copy__": True, "metadata": {"snakepit_shm": {}}},
    {"__snakepit_shm_inline__": 1},
    {"__snakepit_shm_inline__": 1, "base64": "%", "format": "raw", "dtype": None, "shape": None},
    {"__snakepit_shm_inline__": 1, "base64": "AA==", "format": "", "dtype": "O", "shape": None},
    {"__snakepit_shm_inline__": 1, "base64": "AA==", "format": "", "dtype": "u1", "shape": [2]},
    {"__snakepit_shm_inline__": 1, "base64": "AA==", "format": "", "dtype": "u1", "shape": "x"},
    {"__snakepit_shm_inline__": 1, "base64": 7, "format": "", "dtype": "u1", "shape": None},
    {
        "__snakepit_shm_inline__": 1,
        "base64": "AA==",
        "format": "arrow_ipc",
        "dtype": None,
        "shape": None,
    },
    *(
        {
            "__snakepit_shm_inline__": 1,
            "base64": "AAAA",
            "format": "numpy",
            "dtype": dtype,
            "shape": shape,
            **more,
        }
        for dtype, shape, more in (
            ("(1,", None, {}),
            ("i4,,", None, {}),
            ("\0", None, {}),
            ("u1,u1,u1", None, {}),
            ({"names": ["a"], "formats": ["u1"], "offsets": [10**40]}, None, {}),
            ("|u1", [10**30], {}),
            ("|V0", None, {}),
            ("|V3", None, {"element": "[" * 5000}),
            ("|V3", None, {"element": "<f4"}),
            ("|V3", None, {"element": 3}),
            ("|u1", None, {"element": "bfloat16"}),
        )
    ),
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda h: repr(h)[:40])
def test_what_cannot_be_resolved_is_named_and_the_tool_is_not_called(
    place: Place, hostile: dict[str, Any]
) -> None:
    @shared_arguments(options=options(place))
    def never(value: Any) -> None:
        raise AssertionError(f"called with {value}")

    with pytest.raises(ArgumentsNotResolvedError) as caught:
        never([{"deep": hostile}])
    # By this the Elixir side knows that it may call again (bridge/wire.ex).
    assert str(caught.value).startswith("[snakepit-shm: arguments not resolved] ")
    assert isinstance(caught.value.__cause__, shm.ShmError)


def test_a_region_that_is_gone_is_named(place: Place) -> None:
    handle = place.share(b"x")
    place.release(handle)
    with pytest.raises(ArgumentsNotResolvedError, match="not_found"):
        shared_arguments(options=options(place))(print)(handle)


def test_a_zero_copy_reference_of_snakepit_is_what_it_carries(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("snakepit_bridge.zero_copy")
    module.ZeroCopyRef = ZeroCopyRef  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "snakepit_bridge.zero_copy", module)
    handle = place.share(np.arange(3))
    payload = {"__snakepit_zero_copy__": True, "metadata": {"snakepit_shm": handle}, "ref": "x"}

    @shared_arguments(options=options(place))
    def total(a: Any, b: Any) -> int:
        return int(a.sum() + b.sum())

    assert total(payload, ZeroCopyRef(payload)) == 6
    other = ZeroCopyRef({"metadata": {}})
    assert shared_arguments(lambda value: value is other)(other)
    released(place, handle)
