"""Staying registered in the namespaces in which tools exchange values.

A process is registered in a namespace while it has a segment there. A worker that has none between
two requests would register anew with each, which takes longer than a small value does.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading

from . import _native
from ._api import StrPath
from ._errors import ShmError

_members: dict[tuple[str | None, str | None], _native.Membership] = {}
_lock = threading.RLock()


def stay(namespace: str | None, dir: StrPath | None) -> None:
    """Register this process until it ends; does nothing when it is."""
    key = (namespace, None if dir is None else os.fspath(dir))
    if key in _members:
        return
    with _lock:
        # Where that fails, what the caller is about to do fails too, and says why.
        if key not in _members:
            with contextlib.suppress(ShmError):
                _members[key] = _native.join(namespace, dir)


def leave_all() -> None:
    """End the registrations; the next value begins anew."""
    with _lock:
        left = list(_members.values())
        _members.clear()
    for member in left:
        member.leave()


def _forget_all() -> None:
    """In a forked child: the registrations are its parent's."""
    global _lock  # noqa: PLW0603 - a thread of the parent may have held it
    _lock = threading.RLock()
    _members.clear()


atexit.register(leave_all)
os.register_at_fork(after_in_child=_forget_all)
