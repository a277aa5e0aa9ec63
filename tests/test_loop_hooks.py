"""Hooks at work in a scheduler: what they see, what they decide, what they may do."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Any, cast

import attrs
import outcome
import pytest
import trio
import trio.testing
from support import TroubledRepository, at, noon, open_bench, stored

from trio_gokugen import (
    BackoffHooks,
    ChainHooks,
    HookAction,
    LoopHooks,
    PartialHooks,
    PassThroughHooks,
    RepositoryError,
    Scheduler,
    SchedulerNotRunningError,
    Task,
    TaskState,
    WorkerPoolDispatcher,
    WorkRegistry,
    open_scheduler,
)
from trio_gokugen.abc import (
    AddTasks,
    CancelTask,
    ClaimTasks,
    EndTask,
    Fetch,
    Operation,
    RevertTask,
    UpdateTask,
)


@attrs.define(eq=False)
class Recorder(PassThroughHooks):
    """Sees everything, and decides every error alike."""

    action: HookAction = HookAction.RAISE
    pause: float = 0
    seen: list[tuple[str, Any, float]] = attrs.field(factory=list[tuple[str, Any, float]])

    def _note(self, hook: str, what: Any) -> None:
        self.seen.append((hook, what, trio.current_time()))

    async def _decide(self, hook: str, error: Exception) -> HookAction:
        self._note(hook, str(error))
        await trio.sleep(self.pause)
        return self.action

    async def on_get_next_error(self, error: Exception, action: HookAction) -> HookAction:
        return await self._decide("get_next_error", error)

    async def on_get_next(self, task: Task) -> None:
        self._note("get_next", task.id)

    async def on_dispatch_error(self, error: Exception, action: HookAction) -> HookAction:
        return await self._decide("dispatch_error", error)

    async def on_dispatch(self, task: Task) -> None:
        self._note("dispatch", (task.id, task.state.value))

    async def on_update_error(
        self, operations: Sequence[Operation], error: Exception, action: HookAction
    ) -> HookAction:
        self._note("failed", [type(operation) for operation in operations])
        return await self._decide("update_error", error)

    async def on_update(self, operation: Operation, task: Task) -> None:
        self._note("update", (type(operation), task.id, task.state.value))

    async def on_task_done(self, task: Task) -> None:
        self._note("done", (task.id, task.state.value))

    def of(self, *hooks: str) -> list[tuple[Any, float]]:
        return [(what, when) for hook, what, when in self.seen if hook in hooks]


def failing(times: int, kind: type[Operation], error: Exception) -> Any:
    """A `before_apply` that fails so many batches with such an operation."""
    left = times

    async def before_apply(operations: Sequence[Operation]) -> None:
        nonlocal left
        if left and any(isinstance(operation, kind) for operation in operations):
            left -= 1
            raise error

    return before_apply


def failing_call(times: int, error: Exception) -> Any:
    left = times

    async def before() -> None:
        nonlocal left
        if left:
            left -= 1
            raise error

    return before


# -- what they see -----------------------------------------------------------------------


async def test_hooks_see_every_step_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Each step is seen once, after it has taken effect, with the task as it then was.
    """
    hooks = Recorder()
    async with open_bench(hooks=hooks, grace=0) as (scheduler, _):
        await scheduler.add_tasks([at(1, "a"), at(2, "b", "fail"), at(3, "c", "sleep")])
        await scheduler.add_tasks(
            [at(9, "d"), at(4, "e", "sleep"), at(50, "f", deadline=noon(51))]
        )
        await scheduler.update("d", priority=1)
        await scheduler.update("d", priority=1)
        await scheduler.cancel("d")
        await scheduler.cancel("d")
        await trio.sleep(5)
        await scheduler.interrupt("c")

    def of(task_id: str) -> list[tuple[str, Any]]:
        return [
            (hook, what)
            for hook, what, _ in hooks.seen
            if task_id in (what if isinstance(what, tuple) else (what,))
        ]

    assert of("a") == [
        ("update", (AddTasks, "a", "scheduled")),
        ("get_next", "a"),
        ("dispatch", ("a", "dispatched")),
        ("update", (EndTask, "a", "done")),
        ("done", ("a", "done")),
    ]
    assert of("b")[-1] == ("done", ("b", "failed"))
    assert [what[1:] for hook, what in of("c") if hook == "update"] == [
        ("c", "scheduled"),
        ("c", "cancelled"),
    ]
    assert of("c")[-1] == ("done", ("c", "cancelled"))
    assert of("d") == [
        ("update", (AddTasks, "d", "scheduled")),
        ("update", (UpdateTask, "d", "scheduled")),
        ("update", (CancelTask, "d", "cancelled")),
    ]
    assert of("e")[-1] == ("update", (RevertTask, "e", "scheduled"))
    assert ("done", ("e", "scheduled")) not in of("e")


async def test_a_task_past_its_deadline_is_done(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A task that failed because its deadline passed is told to `on_task_done`, never to
    `on_dispatch`.
    """
    hooks = Recorder()
    async with open_bench(hooks=hooks, max_workers=1) as (scheduler, _):
        await scheduler.add_tasks([at(0, "plug", "sleep"), at(1, "a", deadline=noon(2))])
        await scheduler.drain()
    assert (("a", "failed"), 60.0) in hooks.of("done")
    assert [what[0] for what, _ in hooks.of("dispatch")] == ["plug"]


async def test_listeners_come_and_go(autojump_clock: trio.testing.MockClock) -> None:
    """
    Listeners are called with every task whose run is over while they are added; one may
    remove itself, and another, and is then called no more.
    """
    calls: list[tuple[str, str]] = []
    async with open_bench(max_workers=1) as (scheduler, _):

        async def once(task: Task) -> None:
            calls.append(("once", task.id))
            scheduler.remove_on_task_done(once)
            scheduler.remove_on_task_done(never)

        async def never(task: Task) -> None:
            calls.append(("never", task.id))

        async def always(task: Task) -> None:
            calls.append(("always", task.id))

        scheduler.add_on_task_done(once)
        scheduler.add_on_task_done(never)
        scheduler.add_on_task_done(always)
        await scheduler.add_tasks([at(1, "a"), at(2, "b")])
        await trio.sleep(3)
        scheduler.remove_on_task_done(always)
        await scheduler.add_tasks([at(5, "c")])
        with pytest.raises(ValueError, match="has not been added"):
            scheduler.remove_on_task_done(always)
        with pytest.raises(TypeError, match="listener"):
            scheduler.add_on_task_done("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await scheduler.drain()
    assert calls == [("once", "a"), ("always", "a"), ("always", "b")]


async def test_hooks_may_call_the_scheduler(  # noqa: C901 (a method for each hook)
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Every hook may use the scheduler, and wait for its answer.
    """
    answers: list[str] = []
    scheduler: Scheduler

    class Busy(PassThroughHooks):
        async def _use(
            self, hook: str, action: HookAction = HookAction.RETRY
        ) -> HookAction:
            if hook not in answers:
                answers.append(hook)
                task = await scheduler.add_task("note", after=1000)
                assert await scheduler.update(task.id, priority=7)
                assert (await scheduler.get(task.id)).priority == 7
                assert await scheduler.cancel(task.id)
            return action

        async def on_get_next_error(
            self, error: Exception, action: HookAction
        ) -> HookAction:
            return await self._use("get_next_error")

        async def on_get_next(self, task: Task) -> None:
            await self._use("get_next")

        async def on_dispatch_error(
            self, error: Exception, action: HookAction
        ) -> HookAction:
            return await self._use("dispatch_error")

        async def on_dispatch(self, task: Task) -> None:
            await self._use("dispatch")

        async def on_update_error(
            self, operations: Sequence[Operation], error: Exception, action: HookAction
        ) -> HookAction:
            return await self._use("update_error")

        async def on_update(self, operation: Operation, task: Task) -> None:
            await self._use("update")

        async def on_task_done(self, task: Task) -> None:
            await self._use("done")

    repository = TroubledRepository()
    async with open_bench(repository, hooks=Busy()) as (scheduler, _):
        for trouble in (
            failing(1, ClaimTasks, OSError("claim")),
            failing(1, EndTask, OSError("end")),
        ):
            repository.before_apply = trouble
            task = await scheduler.add_task("note", after=5)
            await scheduler.wait(task.id)
        repository.before_wait = failing_call(1, OSError("wait"))
        task = await scheduler.add_task("note", after=5)
        await scheduler.wait(task.id)
        await scheduler.drain()
    assert sorted(answers) == [
        "dispatch",
        "dispatch_error",
        "done",
        "get_next",
        "get_next_error",
        "update",
        "update_error",
    ]


async def test_a_slow_hook_delays_no_answer(autojump_clock: trio.testing.MockClock) -> None:
    """
    While hooks sleep, callers are answered at once, and tasks run on time.
    """

    async def slow(*_: Any) -> None:
        await trio.sleep(1000)

    hooks = PartialHooks(
        on_update=slow, on_task_done=slow, on_dispatch=slow, on_get_next=slow
    )
    async with open_bench(hooks=hooks, grace=0) as (scheduler, bench):
        await scheduler.add_tasks([at(n, str(n)) for n in range(5)])
        assert await scheduler.cancel("4")
        assert (await scheduler.wait("3")).state is TaskState.DONE
        assert trio.current_time() == 3.0
        assert scheduler.statistics().unseen > 0
    assert bench.log == [(str(n), float(n)) for n in range(4)]


async def test_a_slow_error_hook_delays_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    While a hook ponders over a batch that failed, other callers are answered; a caller
    of that batch may go away, and its change is not made.
    """
    repository = TroubledRepository()
    hooks = Recorder(HookAction.RETRY, pause=100)
    repository.before_apply = failing(1, CancelTask, RepositoryError("down"))
    async with open_bench(repository, hooks=hooks) as (scheduler, _):
        await scheduler.add_tasks([at(500, "a"), at(500, "b")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.cancel, "a")
            await trio.sleep(1)
            assert await scheduler.cancel("b")
            assert trio.current_time() == 1.0
            assert (await scheduler.get("a")).state is TaskState.SCHEDULED
        assert trio.current_time() == 100.0
        assert (await scheduler.get("a")).state is TaskState.CANCELLED

        repository.before_apply = failing(1, AddTasks, RepositoryError("down"))
        with trio.move_on_after(10) as scope:
            await scheduler.add_task("note", after=0, id="c")
        assert scope.cancelled_caught
        assert trio.current_time() == 110.0
        await trio.sleep(200)
        assert [task.id for task in await scheduler.find()] == ["a", "b"]


async def test_a_caller_cancelled_while_its_batch_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A caller that is cancelled while its change is being written, which then fails, goes
    away at once, and the change is not made later.
    """
    repository = TroubledRepository()
    hooks = Recorder(HookAction.RETRY, pause=100)

    async def fail_slowly(_: Sequence[Operation]) -> None:
        repository.before_apply = None
        await trio.sleep(10)
        raise RepositoryError("down")

    async with open_bench(repository, hooks=hooks) as (scheduler, _):
        repository.before_apply = fail_slowly
        with trio.move_on_after(1) as scope:
            await scheduler.add_task("note", after=0, id="c")
        assert scope.cancelled_caught
        assert trio.current_time() == 10.0
        await trio.sleep(200)
        assert await scheduler.find() == []


# -- what they decide --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AddTasks, CancelTask, UpdateTask])
async def test_by_default_an_error_leaves_run(
    autojump_clock: trio.testing.MockClock, kind: type[Operation]
) -> None:
    """
    An error of the store reaches the caller and leaves the scheduler.
    """
    repository = TroubledRepository()
    error = OSError("disk full")
    with pytest.RaisesGroup(
        pytest.RaisesExc(OSError), pytest.RaisesExc(OSError), flatten_subgroups=True
    ):
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_tasks([at(50, "a")])
            repository.before_apply = failing(1, kind, error)
            with pytest.raises(OSError, match="disk full") as caught:
                if kind is AddTasks:
                    await scheduler.add_task("note", after=0)
                elif kind is CancelTask:
                    await scheduler.cancel("a")
                else:
                    await scheduler.update("a", priority=3)
            assert caught.value is error
            raise caught.value
    assert [task.id for task in repository.store.snapshot()] == ["a"]


@pytest.mark.parametrize(
    ("hook", "arrange"),
    [
        ("get_next_error", "wait"),
        ("dispatch_error", "claim"),
        ("update_error", "end"),
        ("update_error", "recover"),
        ("get_next_error", "count"),
        ("get_next_error", "count pools"),
    ],
)
@pytest.mark.parametrize("action", list(HookAction))
async def test_each_error_and_each_decision(
    autojump_clock: trio.testing.MockClock, hook: str, arrange: str, action: HookAction
) -> None:
    """
    Each error goes to its hook. Raised, it leaves `run`; retried, nothing is lost;
    ignored, the loop looks again after a pause, and a result is dropped. No task waits for
    a count, nor for its failure.
    """
    repository = TroubledRepository()
    hooks = Recorder(action, pause=5)
    error = RepositoryError("down")
    if arrange == "wait":
        repository.before_wait = failing_call(1, error)
    elif arrange == "recover":
        repository.before_recover = failing_call(1, error)
    elif arrange == "count":
        repository.before_count = failing_call(1, error)
    elif arrange == "count pools":
        repository.before_count_pools = failing_call(1, error)
    else:
        kind = ClaimTasks if arrange == "claim" else EndTask
        repository.before_apply = failing(1, kind, error)
    await repository.add([stored("a"), stored("b", seconds=30)])

    log: list[tuple[str, float]] = []
    raised: list[BaseException] = []
    try:
        async with open_bench(repository, hooks=hooks) as (_, bench):
            log = bench.log
            await trio.sleep(60)
    except* RepositoryError as group:
        raised = list(group.exceptions)

    assert hooks.of(hook) == [("down", 0.0)]
    a = await repository.get("a")
    if action is HookAction.RAISE:
        assert raised
        assert trio.current_time() == 5.0
        if arrange in {
            "end",
            "count",
            "count pools",
        }:  # written as the run ended, or before
            assert a.state is TaskState.DONE
        else:
            assert (a.state, log) == (TaskState.SCHEDULED, [])
        return
    assert not raised
    again = 5.0 if action is HookAction.RETRY else 6.0
    first = {"wait": again, "claim": again, "recover": 5.0}.get(arrange, 0.0)
    assert log == [("a", first), ("b", 30.0)]
    if arrange == "end" and action is HookAction.IGNORE:
        # Ignored means ignored: it stays dispatched until it is recovered. Or, as the
        # scheduler stops, it is forgotten all the same.
        assert a.state is TaskState.DISPATCHED
    else:
        assert (a.state, a.attempt) == (TaskState.DONE, 1)
    assert (await repository.get("b")).state is TaskState.DONE


async def test_an_ignored_update_reaches_its_caller(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who asked for a change that failed and was ignored gets the error; `on_update` is not
    called for it.
    """
    repository = TroubledRepository()
    hooks = Recorder(HookAction.IGNORE)
    async with open_bench(repository, hooks=hooks) as (scheduler, _):
        await scheduler.add_tasks([at(50, "a")])
        repository.before_apply = failing(1, CancelTask, RepositoryError("down"))
        with pytest.raises(RepositoryError, match="down"):
            await scheduler.cancel("a")
        assert (await scheduler.get("a")).state is TaskState.SCHEDULED
    assert [what[0] for what, _ in hooks.of("update")] == [AddTasks]


async def test_who_waits_for_an_ignored_result_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who waits for a task whose outcome could not be recorded, and was ignored, gets the
    error.
    """
    repository = TroubledRepository()
    hooks = Recorder(HookAction.IGNORE)
    async with open_bench(repository, hooks=hooks) as (scheduler, _):
        repository.before_apply = failing(1, EndTask, RepositoryError("down"))
        task = await scheduler.add_task("note", after=5)
        with pytest.raises(RepositoryError, match="down"):
            await scheduler.wait(task.id)
        await scheduler.drain()


async def test_one_operation_of_a_batch_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If the store could not carry out one operation of a batch, the others are answered,
    and the hook is asked about that one.
    """
    repository = TroubledRepository()
    hooks = Recorder(HookAction.IGNORE)
    apply = repository.store.apply

    async def apply_half(operations: Sequence[Operation]) -> Sequence[outcome.Outcome[Any]]:
        outcomes = list(await apply([each for each in operations if not fails(each)]))
        for index, operation in enumerate(operations):
            if fails(operation):
                outcomes.insert(index, outcome.Error(RepositoryError("half")))
        return outcomes

    def fails(operation: Operation) -> bool:
        return isinstance(operation, CancelTask) and operation.task_id == "b"

    async with open_bench(repository, hooks=hooks) as (scheduler, _):
        await scheduler.add_tasks([at(50, each) for each in ("a", "b", "c")])
        repository.store.apply = apply_half  # type: ignore[method-assign]
        failed: list[str] = []

        async def cancel(task_id: str) -> None:
            try:
                await scheduler.cancel(task_id)
            except RepositoryError:
                failed.append(task_id)

        async with trio.open_nursery() as nursery:
            for each in ("a", "b", "c"):
                nursery.start_soon(cancel, each)
        states = {task.id: task.state for task in await scheduler.find()}
    assert failed == ["b"]
    assert states == {
        "a": TaskState.CANCELLED,
        "b": TaskState.SCHEDULED,
        "c": TaskState.CANCELLED,
    }
    assert hooks.of("failed") == [([CancelTask], 0.0)]


async def test_ignored_errors_make_no_busy_loop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A store that fails for an hour, with errors ignored, is asked once a second at most.
    """
    repository = TroubledRepository()
    hooks = Recorder(HookAction.IGNORE)
    repository.before_wait = failing_call(3600, RepositoryError("down"))
    async with open_bench(repository, hooks=hooks) as (scheduler, bench):
        await scheduler.add_task("note", at=noon(10), id="a")
        await scheduler.drain()
    assert len(hooks.of("get_next_error")) == 3600
    assert bench.log == [("a", 3600.0)]


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize(
    "name", ["on_get_next_error", "on_dispatch_error", "on_update_error"]
)
async def test_a_hook_must_decide(
    autojump_clock: trio.testing.MockClock, name: str, chained: bool
) -> None:
    """
    A hook for errors that has forgotten its `return` ends the scheduler, by an error that
    names it, with the store's as its cause.
    """

    async def forget(*_: Any) -> Any:
        return None

    down = RepositoryError("down")
    repository = TroubledRepository()
    if name == "on_get_next_error":
        repository.before_wait = failing_call(1, down)
    else:
        kind = ClaimTasks if name == "on_dispatch_error" else AddTasks
        repository.before_apply = failing(1, kind, down)
    only: dict[str, Any] = {name: forget}
    hooks: LoopHooks = PartialHooks(**only)
    if chained:
        hooks = ChainHooks(hooks, BackoffHooks())
    with pytest.RaisesGroup(
        pytest.RaisesExc(
            TypeError,
            match="forget must return a HookAction, not None",
            check=lambda error: error.__cause__ is down,
        ),
        flatten_subgroups=True,
    ):
        async with open_bench(repository, hooks=hooks) as (scheduler, _):
            with contextlib.suppress(SchedulerNotRunningError):
                await scheduler.add_task("note", after=0)
            await trio.sleep_forever()


@pytest.mark.parametrize(
    "name", ["on_get_next", "on_dispatch", "on_update", "on_task_done", "listener"]
)
async def test_an_error_of_a_hook_leaves_run(
    autojump_clock: trio.testing.MockClock, name: str
) -> None:
    """
    What a watching hook or a listener raises leaves the scheduler.
    """

    async def broken(*_: Any) -> None:
        raise LookupError(name)

    hooks = None if name == "listener" else PartialHooks(**cast("Any", {name: broken}))
    with pytest.RaisesGroup(
        pytest.RaisesExc(LookupError, match=name), flatten_subgroups=True
    ):
        async with open_bench(hooks=hooks) as (scheduler, _):
            if name == "listener":
                scheduler.add_on_task_done(broken)
            await scheduler.add_task("note", after=1)
            await trio.sleep(60)


@pytest.mark.parametrize(
    "name", ["on_update_error", "on_dispatch_error", "on_get_next_error"]
)
async def test_an_error_of_an_error_hook_leaves_run(
    autojump_clock: trio.testing.MockClock, name: str
) -> None:
    """
    What a hook raises that was to decide about an error leaves the scheduler, with the
    outcome of the work recorded.
    """

    async def broken(*_: Any) -> Any:
        raise LookupError(name)

    repository = TroubledRepository()
    error = RepositoryError("down")
    if name == "on_get_next_error":
        repository.before_wait = failing_call(1, error)
    else:
        kind = EndTask if name == "on_update_error" else ClaimTasks
        repository.before_apply = failing(1, kind, error)
    await repository.add([stored("a")])
    with pytest.RaisesGroup(
        pytest.RaisesExc(LookupError, match=name), flatten_subgroups=True
    ):
        hooks = PartialHooks(**cast("Any", {name: broken}))
        async with open_bench(repository, hooks=hooks):
            await trio.sleep(60)
    state = TaskState.DONE if name == "on_update_error" else TaskState.SCHEDULED
    assert (await repository.get("a")).state is state


async def test_back_off_outlives_a_store_that_is_down(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    With `BackoffHooks`, a store that is down for ten minutes costs nothing but time: no
    task is lost, none runs twice, and callers are answered once it is back.
    """
    repository = TroubledRepository()
    down = False

    async def before_apply(_: Sequence[Operation]) -> None:
        if down:
            raise RepositoryError("down")

    async def before_wait() -> None:
        if down:
            raise RepositoryError("down")

    repository.before_apply, repository.before_wait = before_apply, before_wait
    hooks: LoopHooks = ChainHooks(
        BackoffHooks(initial=1, longest=60, source=random.Random(3)), PassThroughHooks()
    )
    async with open_bench(repository, hooks=hooks) as (scheduler, bench):
        await scheduler.add_tasks(
            [at(n, str(n), "sleep", param={"seconds": 5}) for n in range(0, 1000, 10)]
        )
        await trio.sleep(102)
        down = True
        added: list[Task] = []

        async def add() -> None:
            added.append(await scheduler.add_task("note", after=0, id="x"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add)
            await trio.sleep(600)
            assert not added
            down = False
        await scheduler.drain()
        states = [task.state for task in await scheduler.find(limit=None)]
        attempts = {task.attempt for task in await scheduler.find(limit=None)}

    assert states == [TaskState.DONE] * 101
    assert attempts == {1}
    assert len(bench.ids()) == len(set(bench.ids())) == 101
    late = [when for what, when in bench.starts if what != "x" and 110 <= int(what) <= 700]
    assert all(702 <= when <= 702 + 61 for when in late)


@pytest.mark.parametrize("stopped", [False, True])
async def test_an_error_of_a_hook_is_no_error_of_the_dispatch(
    autojump_clock: trio.testing.MockClock, stopped: bool
) -> None:
    """
    What `on_get_next_error` raises leaves the run, and is not put to `on_dispatch_error`;
    nor taken for the scheduler's own end, if it tells of another one that has stopped.
    """
    error = SchedulerNotRunningError() if stopped else ValueError("a bug")

    async def broken(*_: Any) -> HookAction:
        raise error

    async def ignore(*_: Any) -> HookAction:
        return HookAction.IGNORE

    repository = TroubledRepository()
    repository.before_wait = failing_call(1, RepositoryError("down"))
    hooks = PartialHooks(on_get_next_error=broken, on_dispatch_error=ignore)
    with pytest.RaisesGroup(
        pytest.RaisesExc(type(error), check=lambda left: left is error),
        flatten_subgroups=True,
    ):
        async with open_bench(repository, hooks=hooks):
            await trio.sleep_forever()


async def test_a_decision_that_passes_a_nursery(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What a hook has decided to raise is not put to another one, though the dispatcher wraps
    it in a group on its way.
    """

    class InNursery(WorkerPoolDispatcher):
        async def dispatch(self, fetch: Fetch) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(super().dispatch, fetch)

    async def ignore(*_: Any) -> HookAction:
        raise AssertionError("has been decided already")

    works = WorkRegistry()
    repository = TroubledRepository()
    repository.before_wait = failing_call(1, RepositoryError("down"))
    hooks = PartialHooks(on_dispatch_error=ignore)
    with pytest.RaisesGroup(
        pytest.RaisesExc(RepositoryError, match="down"), flatten_subgroups=True
    ):
        async with open_scheduler(works, repository, InNursery(works), hooks=hooks):
            await trio.sleep_forever()
