"""The processes that a command has started, and theirs: a process group, on POSIX.

A command leads a session and a group of its own, which all that it starts are members of,
unless they leave it on purpose. The number of a group is that of the process that leads
it, and is given to no other process while the group has members; but once it has none it
may be, and then nobody must be sent a signal. While the leader has not been waited for,
the number is certainly its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path

import trio

logger = logging.getLogger("trio_gokugen.commands")

LONGEST_PAUSE = 0.05
"""Seconds between two looks at processes that are to end. There is no event to wait for."""

_PROC = Path("/proc")
_ENDED = {b"Z", b"X"}
_STATE, _GROUP = 0, 2
"""Where in ``/proc/*/stat``, behind the name, a process's state and its group are."""


def send(process: trio.Process, *signals: signal.Signals) -> bool:
    """Send signals to all in the group that a process leads; tells if there was anybody."""
    group = process.pid
    if process.poll() is not None and _is_used(group):
        return False  # by another process, so the group has gone
    try:
        for each in signals:
            os.killpg(group, each)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Of a program that runs as another user, sudo for instance. There is no other way.
        logger.warning("process %d may not be sent a signal: waiting for its end", group)
    return True


def wait_for_end(group: int, seconds: float) -> bool:
    """Wait until all in a group have ended, and tell whether they have.

    Blocks, and counts real time, which is what processes live in.
    """
    end = time.monotonic() + seconds
    pause = LONGEST_PAUSE / 64
    while _is_alive(group):
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)
    return True


def reap(leader: trio.Process) -> None:
    """Wait for those in the group of a process that have become our children.

    As it happens in a container, where our process may be the first, and so inherits all
    orphans.
    """
    group = leader.pid
    if leader.poll() is None or _is_used(group):
        return
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG) != (0, 0):
            pass


def _is_used(pid: int) -> bool:
    """Whether there is a process of this number, be it one that has ended."""
    try:
        os.getpgid(pid)
    except ProcessLookupError:
        return False
    except PermissionError:  # pragma: no cover: as OpenBSD says of other sessions
        pass
    return True


def _is_alive(group: int) -> bool:
    """Whether somebody in the group has not ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    members = _states(group)
    # Those who have ended are members until they are waited for, by whoever inherits them:
    # which may be long, or never.
    return members is None or not members <= _ENDED


def _states(group: int) -> set[bytes] | None:
    """The states of the processes in a group; none if the system does not tell."""
    found: set[bytes] = set()
    if not (_PROC / "self" / "stat").exists():
        return None
    for each in _PROC.iterdir():
        if not each.name.isdecimal():
            continue
        try:
            stat = (each / "stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has gone meanwhile
        fields = stat[stat.rindex(b")") + 1 :].split()
        if int(fields[_GROUP]) == group:
            found.add(fields[_STATE])
    return found
