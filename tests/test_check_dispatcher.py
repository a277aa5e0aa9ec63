"""The suite for dispatchers: right ones pass, and whatever is wrong is found."""

from __future__ import annotations

import pickle
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from broken_dispatchers import BROKEN, DropsValues

from trio_gokugen import WorkerPoolDispatcher
from trio_gokugen.abc import Dispatcher, Fetch, WorkRegistry
from trio_gokugen.testing import (
    DISPATCHER_CHECKS,
    SAME_PROCESS_CHECKS,
    STOPPING_CHECKS,
    _check_workers,
    _suite,
    _works,
    check_dispatcher,
    conformance_works,
)


async def test_the_worker_pool_passes(autojump_clock: trio.testing.MockClock) -> None:
    """
    A dispatcher that keeps its promises passes the whole suite, on virtual time.
    """
    await check_dispatcher(WorkerPoolDispatcher)


async def test_it_may_be_given_context_managers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Each check has a fresh dispatcher, with the works of the suite, closed after it.
    """
    opened: list[Dispatcher] = []
    closed: list[Dispatcher] = []

    @asynccontextmanager
    async def open_dispatcher(
        works: WorkRegistry, max_workers: int
    ) -> AsyncGenerator[Dispatcher]:
        assert works is conformance_works
        dispatcher = WorkerPoolDispatcher(works, max_workers)
        opened.append(dispatcher)
        yield dispatcher
        closed.append(dispatcher)

    await check_dispatcher(open_dispatcher, only=["a_value_stands", "a_value_is_reported"])
    assert closed == opened
    assert len(opened) == 2


def test_it_needs_no_mock_clock() -> None:
    """
    In a Trio run whose clock doesn't jump, the suite runs on one that does.
    """

    async def main() -> None:
        await check_dispatcher(WorkerPoolDispatcher, only=["a_deadline_stops_the_work"])
        with pytest.raises(AssertionError, match="a_value_is_reported: What a work"):
            await check_dispatcher(DropsValues, only=["a_value_is_reported"])

    trio.run(main)


@pytest.mark.parametrize(
    ("name", "make"),
    BROKEN,
    ids=[f"{getattr(make, '__name__', '')}-{name}" for name, make in BROKEN],
)
async def test_a_broken_promise_is_named(
    autojump_clock: trio.testing.MockClock,
    name: str,
    make: Callable[[WorkRegistry, int], Dispatcher],
) -> None:
    """
    A dispatcher that breaks a promise fails the check of this promise.
    """
    with pytest.raises(AssertionError, match=f"1 of 1 promises .*\n- {name}: "):
        await check_dispatcher(make, only=[name])


def test_every_check_can_fail() -> None:
    """
    For every check there is a dispatcher that it finds broken.
    """
    assert set(DISPATCHER_CHECKS) - {name for name, _ in BROKEN} == set()


def test_works_can_be_imported_elsewhere() -> None:
    """
    The works of the suite are functions that another process can import by name.
    """
    for work_id in conformance_works.work_ids:
        function = conformance_works.get(work_id).function
        assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301


def test_who_meets_nobody_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A work that waits for another in vain fails, and can be used again.
    """
    monkeypatch.setattr(_works, "PATIENCE", 0.01)
    for _ in range(2):
        with pytest.raises(threading.BrokenBarrierError):
            _works.meet()


def test_two_checks_must_not_have_one_name() -> None:
    """
    A suite in which one check would hide another is refused as it is made.
    """
    with pytest.raises(ValueError, match="two checks have the same name"):
        _suite.Suite("twice", [*_check_workers.checks, *_check_workers.checks[:1]])


async def test_what_cannot_be_promised_is_left_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    The names published for executors of little power are names of checks.
    """
    assert set(DISPATCHER_CHECKS) >= SAME_PROCESS_CHECKS | STOPPING_CHECKS
    assert not set(DISPATCHER_CHECKS) <= SAME_PROCESS_CHECKS | STOPPING_CHECKS
    await check_dispatcher(WorkerPoolDispatcher, skip=SAME_PROCESS_CHECKS | STOPPING_CHECKS)


async def test_a_dispatcher_that_spins_is_told(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A check in which something runs in circles fails, though the clock stands still.
    """

    class Spinning(WorkerPoolDispatcher):
        async def dispatch(self, fetch: Fetch) -> None:
            while True:
                await trio.lowlevel.checkpoint()

    monkeypatch.setattr(_suite, "SPINS_AFTER", 1_000)
    with pytest.raises(AssertionError, match=r"a_value_is_reported: .* \(It hangs\.\)$"):
        await check_dispatcher(Spinning, only=["a_value_is_reported"])
