import math
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_gokugen._autojump import autojump_held, jumping_clock


async def in_thread(milliseconds: int) -> None:
    """Work that takes some real time, of which Trio sees nothing."""
    await trio.to_thread.run_sync(threading.Event().wait, milliseconds / 1_000)


async def held(milliseconds: int) -> None:
    with autojump_held():
        await in_thread(milliseconds)


async def times(*works: Callable[[], Awaitable[None]]) -> list[float]:
    """When each work ended, beside a task that sleeps for a day."""
    ended: list[float] = []

    async def watched(work: Callable[[], Awaitable[None]]) -> None:
        await work()
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 86400)
        async with trio.open_nursery() as working:
            for work in works:
                working.start_soon(watched, work)
        nursery.cancel_scope.cancel()
    return ended


async def test_without_a_hold_the_clock_jumps(autojump_clock: MockClock) -> None:
    """
    Trio's mock clock jumps over a running thread; when it does not any more, the hold is
    of no use.
    """
    assert await times(lambda: in_thread(20)) == [86400]


async def test_a_held_clock_does_not_jump(autojump_clock: MockClock) -> None:
    """
    While a thread runs under a hold, no virtual time passes.
    """
    assert await times(lambda: held(20)) == [0]
    assert trio.current_time() == 0


async def test_after_the_hold_the_clock_jumps_again(autojump_clock: MockClock) -> None:
    """
    When a hold ends, time goes on as before.
    """
    for day in range(3):
        await held(1)
        assert trio.current_time() == day * 86400
        await trio.sleep(86400)
    assert autojump_clock.autojump_threshold == 0


async def test_holds_nest(autojump_clock: MockClock) -> None:
    """
    A hold inside another does not end it.
    """

    async def nested() -> None:
        with autojump_held():
            await held(1)
            await in_thread(20)

    assert await times(nested) == [0]
    assert autojump_clock.autojump_threshold == 0


async def test_the_last_of_many_holds_lets_go(autojump_clock: MockClock) -> None:
    """
    Holds of many tasks overlap in any order, and the last to end lets the clock go.
    """
    works = [lambda ms=ms: held(ms) for ms in (5, 20, 1, 10)]
    assert await times(*works) == [0, 0, 0, 0]
    assert autojump_clock.autojump_threshold == 0
    await trio.sleep(3)
    assert trio.current_time() == 3


async def test_a_hold_that_begins_first_may_end_first(autojump_clock: MockClock) -> None:
    """
    The clock stays held while any hold is left, whichever began first.
    """
    first, second = autojump_held(), autojump_held()
    with first:
        second.__enter__()
    assert autojump_clock.autojump_threshold == math.inf
    second.__exit__(None, None, None)
    assert autojump_clock.autojump_threshold == 0


async def test_an_error_ends_the_hold(autojump_clock: MockClock) -> None:
    """
    An error inside a hold leaves it as it is, and time goes on as before.
    """
    error = OSError("no")
    with pytest.raises(OSError, match=r"^no$") as caught, autojump_held(), autojump_held():
        raise error
    assert caught.value is error
    assert autojump_clock.autojump_threshold == 0


async def test_a_cancellation_ends_the_hold(autojump_clock: MockClock) -> None:
    """
    A cancellation inside a hold ends it, and time goes on as before.
    """
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(held_for_ever)
        await wait_all_tasks_blocked()
        assert autojump_clock.autojump_threshold == math.inf
        nursery.cancel_scope.cancel()
    assert autojump_clock.autojump_threshold == 0
    await trio.sleep(86400)
    assert trio.current_time() == 86400


async def held_for_ever() -> None:
    with autojump_held():
        await trio.sleep_forever()


@pytest.mark.parametrize("threshold", [0, 0.5, math.inf], ids=str)
def test_the_threshold_is_restored(threshold: float) -> None:
    """
    After a hold, the clock jumps after as long a silence as before it.
    """

    async def main() -> None:
        for _ in range(2):
            with autojump_held(), autojump_held():
                assert clock.autojump_threshold == math.inf
            assert clock.autojump_threshold == threshold

    clock = MockClock(autojump_threshold=threshold)
    trio.run(main, clock=clock)


def test_each_run_has_a_hold_of_its_own() -> None:
    """
    A hold that was never ended, in a run that was, holds no other run's clock.
    """
    left_open = autojump_held()

    async def leave_open() -> None:
        left_open.__enter__()

    async def main() -> None:
        with autojump_held():
            await trio.lowlevel.checkpoint()
        await trio.sleep(86400)

    abandoned, clock = MockClock(autojump_threshold=0), MockClock(autojump_threshold=0)
    trio.run(leave_open, clock=abandoned)
    trio.run(main, clock=clock)
    assert clock.autojump_threshold == 0
    assert abandoned.autojump_threshold == math.inf


async def test_a_real_clock_is_left_alone() -> None:
    """
    Under a real clock there is nothing to hold, and what is inside runs as it is.
    """
    assert jumping_clock() is None
    with autojump_held(), autojump_held():
        await trio.lowlevel.checkpoint()
    with pytest.raises(OSError, match=r"^no$"), autojump_held():
        raise OSError("no")


async def test_a_mock_clock_is_known_by_what_it_can(autojump_clock: MockClock) -> None:
    """
    The clock that can jump is found.
    """
    assert jumping_clock() is autojump_clock
