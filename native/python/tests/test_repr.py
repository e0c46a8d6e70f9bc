"""What people see of objects: in a terminal and in a notebook. What others wrote is escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import Place
from snakepit_shm import _html


class _Seen(HTMLParser):
    """The tags and the text of a page; `balanced` when each tag that opens is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.balanced = True
        self.text = ""
        self.feed(html)
        self.close()
        self.balanced = self.balanced and not self.open

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.balanced = self.balanced and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def seen(html: str) -> str:
    page = _Seen(html)
    assert page.balanced, html
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    return page.text


def test_reprs_say_what_and_in_which_state(place: Place) -> None:
    writer = place.create(size=8192)
    reader = place.attach()
    assert repr(writer) == '<snakepit_shm.Writer "it", 8192 bytes>'
    assert repr(reader) == '<snakepit_shm.Reader "it", 8192 bytes, version 0>'
    assert repr(reader.changes()) == f"<snakepit_shm changes of {reader!r}>"
    assert repr(reader.values()) == f"<snakepit_shm values of {reader!r}>"
    writer.write(b"x")
    with reader.pin() as pin:
        assert repr(pin) == '<snakepit_shm.Pin of "it", version 2>'
    writer.seal()
    assert repr(reader) == '<snakepit_shm.Reader "it", 8192 bytes, version 2, sealed>'
    reader.close()
    writer.close()
    assert repr(reader) == '<snakepit_shm.Reader "it", closed>'
    assert repr(writer) == '<snakepit_shm.Writer "it", 8192 bytes, closed>'


def test_notebooks_show_readers_writers_pins_and_what_a_list_finds(place: Place) -> None:
    with place.create(size=8192) as writer, place.attach() as reader:
        assert "none yet" in seen(reader._repr_html_())
        writer.write(np.zeros((2, 3), "f4"))
        for part in ("it", "8 KiB", "live", "24 bytes", "<f4", "(2, 3)"):
            assert part in seen(reader._repr_html_())
        assert "8 KiB" in seen(writer._repr_html_())
        with reader.pin() as pin:
            assert "in place\nTrue" in seen(pin._repr_html_())
        assert "released" in seen(pin._repr_html_())
        (info,) = shm.list_segments(**place.where)
        assert "capacity\n8192" in seen(info._repr_html_())
        writer.seal()
        assert "sealed" in seen(reader._repr_html_())
    assert "closed" in seen(reader._repr_html_())
    assert "closed" in seen(writer._repr_html_())


HOSTILE = """<script>alert('x')</script>&amp;"'"""


def test_what_others_wrote_is_escaped() -> None:
    html = _html.table(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE), ("n", 1)])
    assert "<script" not in html
    assert seen(html).count(HOSTILE) == 4


def test_a_hostile_type_is_shown_as_text(place: Place) -> None:
    """The dtype in a slot's header is eight bytes that any process of the user can write."""
    with place.create() as writer, place.attach() as reader:
        writer.write(np.arange(4, dtype="<f4"))
        data = place.segment_file().read_bytes()
        (at,) = (m.start() for m in re.finditer(rb"<f4\0", data))
        with place.segment_file().open("r+b") as file:
            file.seek(at)
            file.write(b"<b>&</b>")
        try:
            html = reader._repr_html_()
        except shm.ShmError as error:
            pytest.fail(f"a notebook must show something, not {error!r}")
        assert "<b>" not in html
        seen(html)
