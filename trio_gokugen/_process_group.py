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
from collections.abc import Mapping
from pathlib import Path

import trio

logger = logging.getLogger("trio_gokugen.commands")

_PROC = Path("/proc")
_ENDED = {b"Z", b"X"}
_STATE, _GROUP, _THREADS = 0, 2, 17
"""Where in ``/proc/*/stat``, behind the name, these of a process are."""


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


def living(groups: Mapping[int, int]) -> dict[int, int]:
    """Of groups those in which somebody has not ended, each with a member who has not.

    They are given with the member to look at first: the leader, or who was found alive the
    last time. So to look again at a group in which nobody has ended takes little, and one
    look at all processes of the system serves all groups that have lost theirs.
    """
    if not (_PROC / "self" / "stat").exists():  # and so it does not tell any more
        return {group: member for group, member in groups.items() if _exists(group)}
    found = {group: member for group, member in groups.items() if _is_alive(member, group)}
    if lost := {*filter(_exists, groups.keys() - found.keys())}:
        alive, ended = _members(lost)
        # Those who have ended are members until they are waited for, by whoever inherits
        # them: which may be long, or never. A group with no member at all has gone by now,
        # or its members are hidden from us.
        hidden = lost - alive.keys() - ended
        found |= alive | {group: groups[group] for group in hidden}
    return found


def _exists(group: int) -> bool:
    """Whether a group has members, be they such that have ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _members(groups: set[int]) -> tuple[dict[int, int], set[int]]:
    """Of each group a member who has not ended; and the groups that have any who has."""
    alive: dict[int, int] = {}
    ended: set[int] = set()
    for name in _listed():
        try:
            group = os.getpgid(int(name))  # which takes far less than to read a file
        except (ProcessLookupError, PermissionError):
            continue  # it has gone meanwhile, or is none of ours
        if group not in groups or group in alive:
            continue
        if _is_alive(int(name), group):
            alive[group] = int(name)
        else:
            ended.add(group)
    return alive, ended


def _listed() -> list[str]:
    """The numbers of all processes; none if there is no file descriptor left for it."""
    try:
        return [name for name in os.listdir(_PROC) if name.isdecimal()]  # noqa: PTH208 (fast)
    except OSError as error:
        logger.warning("processes cannot be looked at: %s", error)
        return []


def _is_alive(pid: int, group: int) -> bool:
    """Whether a process is in this group and has not ended."""
    try:
        with open(f"{_PROC}/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 (fast)
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return _exists(group)  # which is all that can be seen without a file descriptor
    fields = stat[stat.rindex(b")") + 1 :].split()
    # The state is that of the main thread, which others may outlive.
    has_ended = fields[_STATE] in _ENDED and int(fields[_THREADS]) <= 1
    return int(fields[_GROUP]) == group and not has_ended
