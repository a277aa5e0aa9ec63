"""The processes that a command has started, and theirs: a session, on POSIX.

A command leads a session of its own, and in it a group, which all that it starts are
members of. Some make groups of their own within the session, as `timeout` does, or a shell
for its jobs; who makes a session of its own has left. A signal is sent to a group, but who
is in a session is told by the system only where it has a ``/proc``: elsewhere it is the
group that counts.

The number of a session is that of the process that leads it, and of its group, and is given
to no other process while there are members; but once there are none it may be, and then
nobody must be sent a signal. While the leader has not been waited for, the number is
certainly its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import trio

logger = logging.getLogger("trio_gokugen.commands")

_PROC = Path("/proc")
_ENDED = {b"Z", b"X"}
_STATE, _SESSION, _THREADS = 0, 3, 17
"""Where in ``/proc/*/stat``, behind the name, these of a process are."""


def send(process: trio.Process, *signals: signal.Signals) -> bool:
    """Send signals to all in the group that a process leads; tells if there was anybody."""
    return not has_gone(process) and _send(process.pid, signals)


def send_to_others(
    sessions: Mapping[int, Sequence[signal.Signals]],
) -> dict[int, set[int]]:
    """Send signals to the groups of sessions besides those of their leaders.

    One look at all processes of the system serves all sessions.

    Args:
      sessions: By session, what is to be sent.

    Returns:
      By session, its other groups. Empty if the system does not tell, or not now.
    """
    pids = _listed()
    if not pids:
        return {}
    groups: dict[int, set[int]] = {session: set() for session in sessions}
    for pid in pids:
        try:
            if (session := os.getsid(pid)) in groups:
                groups[session].add(os.getpgid(pid))
        except (ProcessLookupError, PermissionError):
            continue  # it has gone meanwhile, or is none of ours
    for session, others in groups.items():
        others.discard(session)
        for group in others:
            _send(group, sessions[session])
    return groups


def _send(group: int, signals: Iterable[signal.Signals]) -> bool:
    try:
        for each in signals:
            os.killpg(group, each)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Of a program that runs as another user, sudo for instance. There is no other way.
        logger.warning("process %d may not be sent a signal: waiting for its end", group)
    return True


def reap(leader: trio.Process, others: Collection[int]) -> None:
    """Wait for those in the session of a process that have become our children.

    As it happens in a container, where our process may be the first, and so inherits all
    orphans.

    Args:
      leader: The process that leads it.
      others: The groups in it besides its own.
    """
    if leader.poll() is None or has_gone(leader):
        return
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-leader.pid, os.WNOHANG) != (0, 0):
            pass
    for group in others:
        with contextlib.suppress(ChildProcessError):
            _reap_other(group, leader.pid)


def _reap_other(group: int, session: int) -> None:
    """The same for another group, whose number may have been given to a stranger since."""
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while (child := os.waitid(os.P_PGID, group, look)) is not None:
        if os.getsid(child.si_pid) != session:
            return
        os.waitpid(child.si_pid, 0)


def has_gone(leader: trio.Process) -> bool:
    """Whether the session is no more, as another process has the number of its leader."""
    return leader.poll() is not None and _is_used(leader.pid)


def _is_used(pid: int) -> bool:
    """Whether there is a process of this number, be it one that has ended."""
    try:
        os.getpgid(pid)
    except ProcessLookupError:
        return False
    except PermissionError:  # pragma: no cover: as OpenBSD says of other sessions
        pass
    return True


def living(sessions: Mapping[int, int]) -> dict[int, int]:
    """Of sessions those in which somebody has not ended, each with a member who has not.

    They are given with the member to look at first: the leader, or who was found alive the
    last time. So to look again at a session in which nobody has ended takes little, and one
    look at all processes of the system serves all that have lost theirs.
    """
    found = {each: member for each, member in sessions.items() if _is_alive(member, each)}
    if lost := sessions.keys() - found.keys():
        alive, ended = _members(lost)
        # Those who have ended are members until they are waited for, by whoever inherits
        # them: which may be long, or never. A session with no member at all has gone by
        # now, or its members are hidden from us.
        hidden = {*filter(_exists, lost - alive.keys() - ended)}
        found |= alive | {each: sessions[each] for each in hidden}
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


def _members(sessions: AbstractSet[int]) -> tuple[dict[int, int], set[int]]:
    """Of each session a member who has not ended; and those that have any who has."""
    alive: dict[int, int] = {}
    ended: set[int] = set()
    for pid in _listed():
        try:
            session = os.getsid(pid)  # which takes far less than to read a file
        except (ProcessLookupError, PermissionError):
            continue  # it has gone meanwhile, or is none of ours
        if session not in sessions or session in alive:
            continue
        if _is_alive(pid, session):
            alive[session] = pid
        else:
            ended.add(session)
    return alive, ended


def _listed() -> list[int]:
    """The numbers of all processes; none where the system does not list them.

    Nor if there is no file descriptor left for it.
    """
    if not (_PROC / "self" / "stat").exists():  # some list them, and tell no more
        return []
    try:
        return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]  # noqa: PTH208 (fast)
    except OSError as error:
        logger.warning("processes cannot be looked at: %s", error)
        return []


def _is_alive(pid: int, session: int) -> bool:
    """Whether a process is in this session and has not ended."""
    try:
        with open(f"{_PROC}/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 (fast)
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return _exists(session)  # all that can be seen without a file descriptor
    fields = stat[stat.rindex(b")") + 1 :].split()
    # The state is that of the main thread, which others may outlive.
    has_ended = fields[_STATE] in _ENDED and int(fields[_THREADS]) <= 1
    return int(fields[_SESSION]) == session and not has_ended
