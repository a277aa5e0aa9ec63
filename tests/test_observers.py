from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_gokugen import LoopHooks, PartialHooks, PassThroughHooks, Task
from trio_gokugen._observers import Observers
from trio_gokugen.abc import CancelTask, Listener

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


def a_task(number: int) -> Task:
    return Task(id=f"t{number}", work_id="greet", scheduled_at=NOON, created_at=NOON)


class Seen(list[Any]):
    """What hooks and listeners have seen, in order."""

    def hooks(self) -> LoopHooks:
        async def on_task_done(task: Task) -> None:
            self.append(("hook", task.id))

        return PartialHooks(on_task_done=on_task_done)

    def listener(self, name: str) -> Listener:
        async def listen(task: Task) -> None:
            self.append((name, task.id))

        return listen


async def test_events_are_seen_in_order() -> None:
    """
    What happened before anybody could look, and what happens later, is seen once each,
    in the order it happened.
    """
    seen = Seen()
    observers = Observers(seen.hooks(), [])
    for number in range(3):
        observers.tell_done(a_task(number))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observers.run)
        await observers.wait_seen_all()
        observers.tell_done(a_task(3))
        await observers.wait_seen_all()
        nursery.cancel_scope.cancel()
    assert seen == [("hook", f"t{number}") for number in range(4)]


async def test_a_hook_gets_what_is_told() -> None:
    """
    A hook is called by its name, with all that was told.
    """
    calls: list[Any] = []

    async def on_update(*args: Any) -> None:
        calls.append(args)

    observers = Observers(PartialHooks(on_update=on_update), [])
    operation = CancelTask("t1", NOON)
    observers.tell("on_update", operation, a_task(1))
    observers.tell("on_dispatch", a_task(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observers.run)
        await observers.wait_seen_all()
        nursery.cancel_scope.cancel()
    assert calls == [(operation, a_task(1))]


async def test_listeners_are_called_after_the_hook() -> None:
    """
    `on_task_done` is called before the listeners, and these in the order they were added.
    """
    seen = Seen()
    observers = Observers(seen.hooks(), [seen.listener("a"), seen.listener("b")])
    observers.tell_done(a_task(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observers.run)
        await observers.wait_seen_all()
        nursery.cancel_scope.cancel()
    assert seen == [("hook", "t1"), ("a", "t1"), ("b", "t1")]


async def test_a_listener_may_remove_itself_and_others() -> None:
    """
    A listener that has been removed, by itself or by one before, is not called any more,
    and all others are.
    """
    seen = Seen()
    listeners: list[Listener] = []
    late = seen.listener("late")

    async def once(task: Task) -> None:
        seen.append(("once", task.id))
        listeners.remove(once)
        listeners.remove(late)

    listeners += [seen.listener("a"), once, seen.listener("b"), late]
    observers = Observers(None, listeners)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observers.run)
        for number in range(2):
            observers.tell_done(a_task(number))
        await observers.wait_seen_all()
        nursery.cancel_scope.cancel()
    assert seen == [("a", "t0"), ("once", "t0"), ("b", "t0"), ("a", "t1"), ("b", "t1")]


async def test_a_listener_may_add_another() -> None:
    """
    A listener that a listener adds is called from the next task on.
    """
    seen = Seen()
    listeners: list[Listener] = []

    async def adding(task: Task) -> None:
        if len(listeners) == 1:
            listeners.append(seen.listener("new"))

    listeners.append(adding)
    observers = Observers(None, listeners)
    for number in range(2):
        observers.tell_done(a_task(number))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observers.run)
        await observers.wait_seen_all()
        nursery.cancel_scope.cancel()
    assert seen == [("new", "t1")]


async def test_telling_never_waits() -> None:
    """
    A slow hook delays nobody who tells; what it has not seen yet is counted.
    """
    gate = trio.Event()

    async def slow(task: Task) -> None:
        await gate.wait()

    observers = Observers(PartialHooks(on_dispatch=slow), [])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observers.run)
        await wait_all_tasks_blocked()
        for number in range(1_000):
            observers.tell("on_dispatch", a_task(number))
        assert observers.waiting == 1_000
        await wait_all_tasks_blocked()
        assert observers.waiting == 1_000
        gate.set()
        await observers.wait_seen_all()
        assert observers.waiting == 0
        nursery.cancel_scope.cancel()


async def test_who_is_not_there_is_not_told() -> None:
    """
    Without hooks and listeners nothing is kept; with either, there is somebody to tell.
    """
    seen = Seen()
    listeners: list[Listener] = []
    observers = Observers(None, listeners)
    assert not observers.present
    observers.tell("on_dispatch", a_task(1))
    observers.tell_done(a_task(1))
    assert observers.waiting == 0
    await observers.wait_seen_all()
    listeners.append(seen.listener("a"))
    assert observers.present
    assert Observers(PassThroughHooks(), []).present


async def test_an_error_of_a_hook_leaves() -> None:
    """
    An error that a hook raises leaves `run`, and what comes later is not seen.
    """
    seen = Seen()

    async def fail(task: Task) -> None:
        raise OSError(task.id)

    observers = Observers(PartialHooks(on_dispatch=fail), [seen.listener("a")])
    observers.tell("on_dispatch", a_task(1))
    observers.tell_done(a_task(2))
    with pytest.raises(OSError, match=r"^t1$"):
        await observers.run()
    assert seen == []


async def test_a_hook_may_tell() -> None:
    """
    What happens because of a hook is seen after the hook, and waited for.
    """
    seen = Seen()

    async def on_dispatch(task: Task) -> None:
        observers.tell_done(task)
        seen.append(("dispatched", task.id))

    observers = Observers(
        PartialHooks(on_dispatch=on_dispatch), [seen.listener("listener")]
    )
    observers.tell("on_dispatch", a_task(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observers.run)
        await observers.wait_seen_all()
        nursery.cancel_scope.cancel()
    assert seen == [("dispatched", "t1"), ("listener", "t1")]


async def test_all_who_wait_until_all_is_seen_return(autojump_clock: MockClock) -> None:
    """
    Any number of tasks may wait until all is seen, and each returns then.
    """

    async def slow(task: Task) -> None:
        await trio.sleep(1)

    returned: list[float] = []

    async def wait() -> None:
        await observers.wait_seen_all()
        returned.append(trio.current_time())

    observers = Observers(PartialHooks(on_dispatch=slow), [])
    observers.tell("on_dispatch", a_task(1))
    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(observers.run)
            for _ in range(3):
                nursery.start_soon(wait)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
    assert returned == [1, 1, 1]


async def test_a_hook_at_work_has_not_seen_all(autojump_clock: MockClock) -> None:
    """
    Waiting until all is seen goes on while a hook is at work, though no event is left.
    """

    async def slow(task: Task) -> None:
        await trio.sleep(7)

    observers = Observers(PartialHooks(on_dispatch=slow), [])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observers.run)
        observers.tell("on_dispatch", a_task(1))
        await wait_all_tasks_blocked()
        assert observers.waiting == 1
        await observers.wait_seen_all()
        assert trio.current_time() == 7
        nursery.cancel_scope.cancel()
