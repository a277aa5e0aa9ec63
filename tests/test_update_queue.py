from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import outcome
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_gokugen import SchedulerNotRunningError, Task, TaskState
from trio_gokugen._update_queue import Item, Request, UpdateQueue
from trio_gokugen.abc import CancelTask, Operation, TaskResult

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


def a_result(task_id: str) -> TaskResult:
    run = Task(
        id=task_id,
        work_id="greet",
        scheduled_at=NOON,
        created_at=NOON,
        state=TaskState.DISPATCHED,
    )
    return TaskResult(run, outcome.Value(None))


class Caller:
    """Somebody who asks for a cancellation, and how that ended."""

    def __init__(self, queue: UpdateQueue, name: str) -> None:
        self.name = name
        self.scope = trio.CancelScope()
        self.outcome: outcome.Outcome[Any] | None = None
        self.cancelled_later = False
        self._queue = queue

    def make(self, now: datetime) -> Operation:
        return CancelTask(self.name, now)

    async def run(self) -> None:
        with self.scope:
            try:
                self.outcome = outcome.Value(await self._queue.ask(self.make))
            except trio.Cancelled:
                self.outcome = None
                raise
            except Exception as error:  # noqa: BLE001 - looked at by the test
                self.outcome = outcome.Error(error)
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled:
                self.cancelled_later = True
                raise

    @property
    def left(self) -> bool:
        """Whether the call was cancelled, without an answer."""
        return self.scope.cancelled_caught and self.outcome is None


async def start(nursery: trio.Nursery, queue: UpdateQueue, *names: str) -> list[Caller]:
    """Callers who wait for an answer, in this order."""
    callers: list[Caller] = []
    for name in names:
        callers.append(Caller(queue, name))
        nursery.start_soon(callers[-1].run)
        await wait_all_tasks_blocked()
    return callers


def names(items: Sequence[Item]) -> list[str]:
    """Who asked, or what the result is of."""
    found: list[str] = []
    for item in items:
        if isinstance(item, TaskResult):
            found.append(item.run.id)
        else:
            operation = item.make(NOON)
            assert isinstance(operation, CancelTask)
            found.append(operation.task_id)
    return found


def requests(items: Sequence[Item]) -> list[Request]:
    return [item for item in items if isinstance(item, Request)]


async def take_one(queue: UpdateQueue) -> Request:
    """The one request that waits, taken for a batch."""
    [request] = requests(await queue.take_all())
    assert request.take()
    return request


# -- asking and answering -----------------------------------------------------------


async def test_whoever_asks_gets_the_answer() -> None:
    """
    Each caller gets the result, or the error, that his request is settled with.
    """
    queue, error = UpdateQueue(), OSError("no")
    async with trio.open_nursery() as nursery:
        callers = await start(nursery, queue, "a", "b", "c")
        assert len(queue) == 3
        for request in requests(await queue.take_all()):
            assert request.take()
            assert request.start is None
            operation = request.make(NOON)
            assert isinstance(operation, CancelTask)
            assert operation.at == NOON
            if operation.task_id == "b":
                request.settle(outcome.Error(error))
            else:
                request.settle(outcome.Value(operation.task_id * 2))
        assert len(queue) == 0
    assert [each.outcome for each in callers] == [
        outcome.Value("aa"),
        outcome.Error(error),
        outcome.Value("cc"),
    ]


async def test_a_claim_brings_what_starts_its_tasks() -> None:
    """
    A request keeps the function that is to start each task it claims.
    """
    queue, started = UpdateQueue(), list[Task]()

    async def claim() -> None:
        await queue.ask(lambda now: CancelTask("t1", now), started.append)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim)
        request = await take_one(queue)
        assert request.start is not None
        request.start(a_result("t1").run)
        request.settle(outcome.Value(None))
    assert started == [a_result("t1").run]


async def test_all_that_waits_is_taken_in_order() -> None:
    """
    Requests and results are taken together, in the order they came.
    """
    queue = UpdateQueue()
    async with trio.open_nursery() as nursery:
        queue.send_nowait(a_result("first"))
        await start(nursery, queue, "a", "b")
        queue.send_nowait(a_result("last"))
        items = await queue.take_all()
        assert names(items) == ["first", "a", "b", "last"]
        for request in requests(items):
            request.settle(outcome.Value(None))


@pytest.mark.parametrize("who", ["caller", "worker", "loop"])
async def test_the_loop_sleeps_until_something_comes(who: str) -> None:
    """
    Taking waits while there is nothing, and is woken by a request, by a result, and by
    what is put back; what comes before it runs is taken with it.
    """
    queue, taken = UpdateQueue(), list[list[str]]()

    async def loop() -> None:
        items = await queue.take_all()
        taken.append(names(items))
        for request in requests(items):
            request.settle(outcome.Value(None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop)
        await wait_all_tasks_blocked()
        assert taken == []
        match who:
            case "caller":
                await start(nursery, queue, "a")
            case "worker":
                queue.send_nowait(a_result("a"))
                queue.send_nowait(a_result("b"))
            case _:
                queue.put_back([a_result("a")])
                queue.put_back([a_result("b")])
    assert taken == [{"caller": ["a"], "worker": ["a", "b"], "loop": ["b", "a"]}[who]]


async def test_what_is_put_back_comes_first() -> None:
    """
    What is put back is taken again before all that has come since, in its own order.
    """
    queue = UpdateQueue()
    queue.send_nowait(a_result("a"))
    queue.send_nowait(a_result("b"))
    items = await queue.take_all()
    queue.send_nowait(a_result("c"))
    queue.put_back(items)
    assert names(await queue.take_all()) == ["a", "b", "c"]


async def test_a_loop_that_is_cancelled_loses_nothing() -> None:
    """
    A loop that is cancelled while it waits takes nothing; whoever takes next gets all.
    """
    queue = UpdateQueue()
    for scope_cancelled_first in (True, False):
        async with trio.open_nursery() as nursery:
            taken: list[str] = []

            async def loop() -> None:
                taken.extend(names(await queue.take_all()))  # noqa: B023 - this round's

            nursery.start_soon(loop)
            await wait_all_tasks_blocked()
            if scope_cancelled_first:
                nursery.cancel_scope.cancel()
            queue.send_nowait(a_result("a"))
            queue.send_nowait(a_result("b"))
            nursery.cancel_scope.cancel()
        left = names(await queue.take_all()) if len(queue) else []
        assert [*taken, *left] == ["a", "b"]


async def test_asking_is_a_checkpoint() -> None:
    """
    Asking lets other Trio tasks run, though the answer should be there at once.
    """
    queue = UpdateQueue()

    async def loop() -> None:
        (await take_one(queue)).settle(outcome.Value(7))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop)
        await wait_all_tasks_blocked()
        with assert_checkpoints():
            assert await queue.ask(lambda now: CancelTask("a", now)) == 7


# -- cancellation of who asks --------------------------------------------------------


async def test_a_request_that_waits_is_withdrawn() -> None:
    """
    A caller cancelled before his request is taken leaves at once, and it is not taken.
    """
    queue = UpdateQueue()
    async with trio.open_nursery() as nursery:
        callers = await start(nursery, queue, "a", "b", "c")
        callers[1].scope.cancel()
        await wait_all_tasks_blocked()
        assert callers[1].left
        a, b, c = requests(await queue.take_all())
        assert [a.take(), b.take(), c.take()] == [True, False, True]
        for each in (a, b, c):
            each.settle(outcome.Value(None))
    assert [each.left for each in callers] == [False, True, False]


async def test_whoever_is_cancelled_already_asks_for_nothing() -> None:
    """
    A request of a caller who was cancelled before he asked is not taken.
    """
    queue = UpdateQueue()
    with trio.CancelScope() as scope:
        scope.cancel()
        await queue.ask(lambda now: CancelTask("a", now))
    assert scope.cancelled_caught
    if len(queue):
        assert not any(each.take() for each in requests(await queue.take_all()))


@pytest.mark.parametrize(
    "answer", [outcome.Value("done"), outcome.Error(OSError("no"))], ids=["value", "error"]
)
async def test_a_request_that_was_taken_is_waited_for(
    answer: outcome.Outcome[Any],
) -> None:
    """
    A caller cancelled after his request was taken stays until he has the answer, and is
    cancelled at his next checkpoint.
    """
    queue = UpdateQueue()
    async with trio.open_nursery() as nursery:
        [caller] = await start(nursery, queue, "a")
        request = await take_one(queue)
        caller.scope.cancel()
        await wait_all_tasks_blocked()
        assert not caller.scope.cancelled_caught
        request.settle(answer)
    assert caller.outcome == answer
    assert caller.cancelled_later


async def test_a_taken_request_outlasts_a_deadline(autojump_clock: MockClock) -> None:
    """
    A time limit around a call does not cut off an answer that is on its way.
    """
    queue = UpdateQueue()

    async def loop() -> None:
        request = await take_one(queue)
        await trio.sleep(10)
        request.settle(outcome.Value("done"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop)
        with trio.move_on_after(1):
            assert await queue.ask(lambda now: CancelTask("a", now)) == "done"
            assert trio.current_time() == 10


async def test_a_request_laid_down_lets_a_cancelled_caller_leave() -> None:
    """
    A caller who was cancelled while his request was taken leaves as soon as it is known
    that it was not carried out; it is not taken again.
    """
    queue = UpdateQueue()
    async with trio.open_nursery() as nursery:
        [caller] = await start(nursery, queue, "a")
        request = await take_one(queue)
        caller.scope.cancel()
        await wait_all_tasks_blocked()
        request.lay_down()
        await wait_all_tasks_blocked()
        assert caller.left
        queue.put_back([request])
        assert [each.take() for each in requests(await queue.take_all())] == [False]


async def test_a_request_laid_down_can_be_withdrawn() -> None:
    """
    A request that was laid down waits again: its caller, cancelled then, leaves at once.
    """
    queue = UpdateQueue()
    async with trio.open_nursery() as nursery:
        [caller] = await start(nursery, queue, "a")
        request = await take_one(queue)
        request.lay_down()
        await wait_all_tasks_blocked()
        assert caller.outcome is None
        caller.scope.cancel()
        await wait_all_tasks_blocked()
        assert caller.left
        assert not request.take()


async def test_a_request_laid_down_can_be_taken_again() -> None:
    """
    A request that was laid down and put back is taken, waited for and answered as new.
    """
    queue = UpdateQueue()
    async with trio.open_nursery() as nursery:
        [caller] = await start(nursery, queue, "a")
        for _ in range(3):
            request = await take_one(queue)
            request.lay_down()
            queue.put_back([request])
        request = await take_one(queue)
        caller.scope.cancel()
        await wait_all_tasks_blocked()
        assert not caller.left
        request.settle(outcome.Value("done"))
    assert caller.outcome == outcome.Value("done")


async def test_only_the_first_answer_counts() -> None:
    """
    A request that is settled stays so: a second answer, a refusal, or laying it down
    change nothing.
    """
    queue = UpdateQueue()
    async with trio.open_nursery() as nursery:
        [caller] = await start(nursery, queue, "a")
        request = await take_one(queue)
        request.settle(outcome.Value("first"))
        request.settle(outcome.Value("second"))
        request.refuse()
        request.lay_down()
        assert not request.take()
    assert caller.outcome == outcome.Value("first")


# -- the end ------------------------------------------------------------------------


async def test_at_the_end_all_are_answered() -> None:
    """
    Closing refuses whoever waits, and hands over the results that are left, in order.
    """
    queue = UpdateQueue()
    async with trio.open_nursery() as nursery:
        queue.send_nowait(a_result("first"))
        callers = await start(nursery, queue, "a", "b")
        queue.send_nowait(a_result("last"))
        callers[1].scope.cancel()
        await wait_all_tasks_blocked()
        assert names(queue.close()) == ["first", "last"]
        assert len(queue) == 0
    assert isinstance(callers[0].outcome, outcome.Error)
    assert isinstance(callers[0].outcome.error, SchedulerNotRunningError)
    assert callers[1].left


async def test_after_the_end_nobody_waits() -> None:
    """
    Asking a closed queue is refused at once.
    """
    queue = UpdateQueue()
    queue.close()
    with pytest.raises(SchedulerNotRunningError):
        await queue.ask(lambda now: CancelTask("a", now))
    assert len(queue) == 0


async def test_after_the_end_no_result_is_lost() -> None:
    """
    A result that comes after the queue was closed is there when it is closed again.
    """
    queue = UpdateQueue()
    queue.send_nowait(a_result("a"))
    assert names(queue.close()) == ["a"]
    queue.send_nowait(a_result("b"))
    assert len(queue) == 1
    assert names(queue.close()) == ["b"]
    assert queue.close() == []


async def test_what_was_taken_is_answered_after_the_end() -> None:
    """
    A request that was taken when the queue was closed is settled, or put back and then
    refused; its caller is answered either way.
    """
    queue = UpdateQueue()
    async with trio.open_nursery() as nursery:
        callers = await start(nursery, queue, "a", "b", "c")
        a, b, c = requests(await queue.take_all())
        assert a.take()
        assert b.take()
        assert c.take()
        assert queue.close() == []
        a.settle(outcome.Value("done"))
        b.lay_down()
        queue.put_back([b])
        queue.close()
        c.refuse()
    assert callers[0].outcome == outcome.Value("done")
    for caller in callers[1:]:
        assert isinstance(caller.outcome, outcome.Error)
        assert isinstance(caller.outcome.error, SchedulerNotRunningError)


# -- all of it together ---------------------------------------------------------------


class Traffic:
    """A queue, its callers, and a loop that takes its time."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.queue = UpdateQueue()
        self.callers: list[Caller] = []
        self.taken: list[Request] = []
        self.laid_down: list[Request] = []
        self.carried_out: set[str] = set()
        self._nursery = nursery

    async def ask(self, _: int) -> None:
        self.callers.append(Caller(self.queue, str(len(self.callers))))
        self._nursery.start_soon(self.callers[-1].run)

    async def cancel(self, number: int) -> None:
        for caller in self.callers[number : number + 1]:
            caller.scope.cancel()

    async def take(self, _: int) -> None:
        if len(self.queue):
            items = requests(await self.queue.take_all())
            self.taken += [each for each in items if each.take()]

    async def settle(self, number: int) -> None:
        if self.taken:
            request = self.taken.pop(number % len(self.taken))
            [name] = names([request])
            self.carried_out.add(name)
            request.settle(outcome.Value(name))

    async def lay_down(self, number: int) -> None:
        if self.taken:
            self.laid_down.append(self.taken.pop(number % len(self.taken)))
            self.laid_down[-1].lay_down()

    async def put_back(self, _: int) -> None:
        self.queue.put_back(self.laid_down)
        self.laid_down.clear()

    async def end(self) -> None:
        await wait_all_tasks_blocked()
        while self.taken:
            await self.settle(0)
        await self.put_back(0)
        self.queue.close()


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "cancel", "take", "settle", "lay_down", "put_back"]),
            st.integers(0, 3),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_a_cancellation_changes_everything_or_nothing(
    actions: list[tuple[str, int, bool]],
) -> None:
    """
    Whatever happens in whatever order: what was carried out is answered, and for whoever
    is cancelled without an answer nothing was carried out; nobody waits for ever.
    """

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            traffic = Traffic(nursery)
            for action, number, pause in actions:
                await getattr(traffic, action)(number)
                if pause:
                    await wait_all_tasks_blocked()
            await traffic.end()
        for caller in traffic.callers:
            if caller.name in traffic.carried_out:
                assert caller.outcome == outcome.Value(caller.name)
            elif caller.outcome is None:
                assert caller.left
            else:
                assert isinstance(caller.outcome, outcome.Error)
                assert isinstance(caller.outcome.error, SchedulerNotRunningError)

    trio.run(main)
