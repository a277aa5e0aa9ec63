import inspect
import logging
import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, assert_no_checkpoints

from trio_gokugen import (
    BackoffHooks,
    ChainHooks,
    Dropped,
    GokugenError,
    HookAction,
    InvalidTaskError,
    LoopHooks,
    PartialHooks,
    PassThroughHooks,
    RepositoryError,
    Task,
)
from trio_gokugen._hooks import checked_hooks
from trio_gokugen.abc import CancelTask, Operation

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
TASK = Task(id="t1", work_id="greet", scheduled_at=NOON, created_at=NOON)
OPERATIONS = (CancelTask("t1", NOON), CancelTask("t2", NOON))
DOWN = RepositoryError("disk full")
DROPPED = Dropped(schedule_id="s", reason="late", count=1, first=NOON, last=NOON)

# Every hook, and what it is called with.
WATCHING: dict[str, tuple[Any, ...]] = {
    "on_get_next": (TASK,),
    "on_dispatch": (TASK,),
    "on_update": (OPERATIONS[0], TASK),
    "on_dropped": (DROPPED,),
    "on_task_done": (TASK,),
}
DECIDING: dict[str, tuple[Any, ...]] = {
    "on_get_next_error": (DOWN,),
    "on_dispatch_error": (DOWN,),
    "on_update_error": (OPERATIONS, DOWN),
}
deciding = pytest.mark.parametrize("hook", DECIDING)
watching = pytest.mark.parametrize("hook", WATCHING)
every_action = pytest.mark.parametrize("action", HookAction, ids=lambda each: each.name)


async def decide(hooks: LoopHooks, hook: str, action: HookAction) -> HookAction:
    decided: HookAction = await getattr(hooks, hook)(*DECIDING[hook], action)
    return decided


async def watch(hooks: LoopHooks, hook: str) -> None:
    assert await getattr(hooks, hook)(*WATCHING[hook]) is None


class Recording(PassThroughHooks):
    """Notes every call, and decides what it was told to."""

    def __init__(
        self, name: str, calls: list[tuple[Any, ...]], decision: HookAction
    ) -> None:
        self.name = name
        self.calls = calls
        self.decision = decision

    async def on_get_next_error(self, error: Exception, action: HookAction) -> HookAction:
        self.calls.append((self.name, "on_get_next_error", error, action))
        return self.decision

    async def on_dispatch_error(self, error: Exception, action: HookAction) -> HookAction:
        self.calls.append((self.name, "on_dispatch_error", error, action))
        return self.decision

    async def on_update_error(
        self, operations: Sequence[Operation], error: Exception, action: HookAction
    ) -> HookAction:
        self.calls.append((self.name, "on_update_error", operations, error, action))
        return self.decision

    async def on_get_next(self, task: Task) -> None:
        self.calls.append((self.name, "on_get_next", task))

    async def on_dispatch(self, task: Task) -> None:
        self.calls.append((self.name, "on_dispatch", task))

    async def on_update(self, operation: Operation, task: Task) -> None:
        self.calls.append((self.name, "on_update", operation, task))

    async def on_dropped(self, dropped: Dropped) -> None:
        self.calls.append((self.name, "on_dropped", dropped))

    async def on_task_done(self, task: Task) -> None:
        self.calls.append((self.name, "on_task_done", task))


def test_every_hook_is_tried_here() -> None:
    """
    All the hooks that `LoopHooks` has, and no others, are tried below.
    """
    promised = {name for name, _ in inspect.getmembers(LoopHooks) if name.startswith("on_")}
    assert promised == {*WATCHING, *DECIDING}


# -- what may be a hook ---------------------------------------------------------------


@pytest.mark.parametrize(
    "hooks",
    [PassThroughHooks(), PartialHooks(), ChainHooks(), BackoffHooks()],
    ids=lambda each: type(each).__name__,
)
def test_hooks_are_taken_as_they_are(hooks: LoopHooks) -> None:
    """
    All the ready-made hooks are what the scheduler takes for hooks.
    """
    assert checked_hooks(hooks) is hooks


@pytest.mark.parametrize("hook", [*WATCHING, *DECIDING])
@pytest.mark.parametrize("wrong", [None, 7, print], ids=str)
def test_a_hook_that_cannot_be_awaited_is_named(hook: str, wrong: object) -> None:
    """
    Hooks of which one is missing, or no async function, are refused by its name.
    """
    hooks = PassThroughHooks()
    setattr(hooks, hook, wrong)
    with pytest.raises(TypeError, match=f"^hooks.{hook}: must be an async function, not "):
        checked_hooks(hooks)


# -- pass through -------------------------------------------------------------------


@deciding
@every_action
async def test_pass_through_leaves_what_was_decided(hook: str, action: HookAction) -> None:
    """
    `PassThroughHooks` leave every error as it was decided before.
    """
    assert await decide(PassThroughHooks(), hook, action) is action


@watching
async def test_pass_through_watches_nothing(hook: str) -> None:
    """
    `PassThroughHooks` do nothing when something has happened.
    """
    with assert_no_checkpoints():
        await watch(PassThroughHooks(), hook)


# -- partial ------------------------------------------------------------------------


@deciding
@every_action
async def test_a_partial_hook_decides(hook: str, action: HookAction) -> None:
    """
    A hook given to `PartialHooks` gets what the hook gets, and its decision is kept.
    """
    calls: list[tuple[Any, ...]] = []

    async def given(*args: Any) -> HookAction:
        calls.append(args)
        return HookAction.IGNORE

    arguments: dict[str, Any] = {hook: given}
    hooks = PartialHooks(**arguments)
    assert await decide(hooks, hook, action) is HookAction.IGNORE
    assert calls == [(*DECIDING[hook], action)]
    for other in DECIDING.keys() - {hook}:
        assert await decide(hooks, other, action) is action
    assert len(calls) == 1


@watching
async def test_a_partial_hook_watches(hook: str) -> None:
    """
    A hook given to `PartialHooks` is called with what has happened, and no other is.
    """
    calls: list[tuple[Any, ...]] = []

    async def given(*args: Any) -> None:
        calls.append(args)

    arguments: dict[str, Any] = {hook: given}
    hooks = PartialHooks(**arguments)
    for each in WATCHING:
        await watch(hooks, each)
    assert calls == [WATCHING[hook]]


async def test_partial_hooks_of_nothing_pass_through() -> None:
    """
    `PartialHooks` without a hook are like `PassThroughHooks`, whose methods they keep.
    """
    hooks = PartialHooks()
    for hook in DECIDING:
        assert await decide(hooks, hook, HookAction.RETRY) is HookAction.RETRY
    for hook in WATCHING:
        await watch(hooks, hook)


@pytest.mark.parametrize("hook", [*WATCHING, *DECIDING])
@pytest.mark.parametrize("wrong", [7, "on_update", [print]], ids=repr)
def test_a_partial_hook_must_be_a_function(hook: str, wrong: object) -> None:
    """
    What cannot be called is refused by `PartialHooks`, by the hook's name.
    """
    arguments: dict[str, Any] = {hook: wrong}
    with pytest.raises(TypeError, match=f"^{hook}: must be an async function, not "):
        PartialHooks(**arguments)


def test_partial_hooks_refuse_what_is_no_hook() -> None:
    """
    A name that is no hook's is refused by `PartialHooks`.
    """
    arguments: dict[str, Any] = {"on_done": test_every_hook_is_tried_here}
    with pytest.raises(TypeError, match="on_done"):
        PartialHooks(**arguments)


# -- chain --------------------------------------------------------------------------


@deciding
async def test_in_a_chain_the_last_decides(hook: str) -> None:
    """
    In a chain, each hook is told what the one before decided, in order, and the last
    one's decision counts.
    """
    calls: list[tuple[Any, ...]] = []
    hooks = ChainHooks(
        Recording("a", calls, HookAction.RETRY),
        Recording("b", calls, HookAction.IGNORE),
        PassThroughHooks(),
    )
    assert await decide(hooks, hook, HookAction.RAISE) is HookAction.IGNORE
    assert calls == [
        ("a", hook, *DECIDING[hook], HookAction.RAISE),
        ("b", hook, *DECIDING[hook], HookAction.RETRY),
    ]


@watching
async def test_in_a_chain_all_watch(hook: str) -> None:
    """
    In a chain, every hook is called, in order.
    """
    calls: list[tuple[Any, ...]] = []
    hooks = ChainHooks(
        Recording("a", calls, HookAction.RAISE),
        ChainHooks(Recording("b", calls, HookAction.RAISE)),
        Recording("c", calls, HookAction.RAISE),
    )
    await watch(hooks, hook)
    assert calls == [(name, hook, *WATCHING[hook]) for name in "abc"]


@deciding
@every_action
async def test_an_empty_chain_passes_through(hook: str, action: HookAction) -> None:
    """
    A chain of nothing leaves every error as it was decided before.
    """
    assert await decide(ChainHooks(), hook, action) is action


@pytest.mark.parametrize("hook", [*WATCHING, *DECIDING])
async def test_an_error_in_a_chain_ends_it(hook: str) -> None:
    """
    An error that a hook raises leaves the chain, and no later hook is called.
    """
    calls: list[tuple[Any, ...]] = []

    async def fail(*_: Any) -> HookAction:
        raise OSError("hook")

    arguments: dict[str, Any] = {hook: fail}
    hooks = ChainHooks(
        PartialHooks(**arguments), Recording("late", calls, HookAction.IGNORE)
    )
    with pytest.raises(OSError, match=r"^hook$"):
        if hook in DECIDING:
            await decide(hooks, hook, HookAction.RAISE)
        else:
            await watch(hooks, hook)
    assert calls == []


# -- back off -----------------------------------------------------------------------


def pauses(seed: int, count: int, *, initial: float, longest: float) -> list[float]:
    """How long each of so many failures in a row is to be waited after."""
    source = random.Random(seed)
    return [
        min(initial * 2.0**number, longest) * source.uniform(0.5, 1)
        for number in range(count)
    ]


async def time_of(hooks: BackoffHooks, hook: str) -> float:
    before = trio.current_time()
    assert await decide(hooks, hook, HookAction.RAISE) is HookAction.RETRY
    return trio.current_time() - before


@deciding
async def test_back_off_doubles_up_to_the_longest(
    hook: str, autojump_clock: MockClock
) -> None:
    """
    Each failure is waited after for a random part, between a half and all, of a time
    that doubles from `initial` up to `longest`; then it is tried again.
    """
    hooks = BackoffHooks(initial=0.25, longest=60, source=random.Random(7))
    expected = pauses(7, 20, initial=0.25, longest=60)
    start = trio.current_time()
    for number, pause in enumerate(expected):
        await decide(hooks, hook, HookAction.RAISE)
        start += pause
        assert trio.current_time() == start
        whole = min(0.25 * 2**number, 60)
        assert whole / 2 <= pause <= whole


SUCCESS_OF = {
    "on_get_next_error": "on_get_next",
    "on_dispatch_error": "on_dispatch",
    "on_update_error": "on_update",
}


@deciding
@pytest.mark.parametrize("success", WATCHING)
async def test_a_success_of_its_kind_starts_the_back_off_anew(
    success: str, hook: str, autojump_clock: MockClock
) -> None:
    """
    After a success of what had failed, the next failure is waited after as the first; a
    success of another kind, a read that works while writes fail, changes nothing.
    """
    hooks = BackoffHooks(initial=1, longest=1_000, source=random.Random(7))
    assert [await time_of(hooks, hook) for _ in range(5)][-1] >= 8
    await watch(hooks, success)
    if success == SUCCESS_OF[hook]:
        assert await time_of(hooks, hook) <= 1
    else:
        assert await time_of(hooks, hook) >= 16


@deciding
@every_action
@pytest.mark.parametrize(
    "error",
    [OSError("no"), GokugenError("no"), InvalidTaskError("id", "no"), KeyError()],
    ids=lambda each: type(each).__name__,
)
async def test_only_repository_errors_are_retried(
    hook: str, action: HookAction, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """
    An error that is not the repository's is left as it was decided, at once, and not
    logged.
    """
    hooks = BackoffHooks()
    *arguments, _ = DECIDING[hook]
    with assert_no_checkpoints():
        assert await getattr(hooks, hook)(*arguments, error, action) is action
    assert caplog.records == []


async def test_any_number_of_failures_can_be_waited_after(
    autojump_clock: MockClock,
) -> None:
    """
    After thousands of failures in a row, each is waited after for at most the longest
    time, and at least half of it.
    """
    hooks = BackoffHooks(initial=1e-6, longest=8, source=random.Random(7))
    waited = [await time_of(hooks, "on_get_next_error") for _ in range(3_000)]
    assert all(4 <= pause <= 8 for pause in waited[100:])


async def test_a_huge_pause_does_not_overflow(autojump_clock: MockClock) -> None:
    """
    Doubling a pause that is almost too long for a float gives the longest, no error.
    """
    hooks = BackoffHooks(initial=1e300, longest=1e301, source=random.Random(7))
    for _ in range(5):
        with trio.move_on_after(1) as scope:
            await decide(hooks, "on_get_next_error", HookAction.RAISE)
        assert scope.cancelled_caught


@deciding
async def test_a_back_off_can_be_cancelled(hook: str, autojump_clock: MockClock) -> None:
    """
    A pause ends at once when it is cancelled, and the failure still counts.
    """
    hooks = BackoffHooks(initial=100, longest=1_000, source=random.Random(7))
    with trio.move_on_after(1) as scope:
        await decide(hooks, hook, HookAction.RAISE)
    assert scope.cancelled_caught
    assert trio.current_time() == 1
    await decide(hooks, hook, HookAction.RAISE)
    assert trio.current_time() == 1 + pauses(7, 2, initial=100, longest=1_000)[1]


@deciding
async def test_a_retried_failure_is_a_checkpoint(
    hook: str, autojump_clock: MockClock
) -> None:
    """
    However short the pause, other Trio tasks get a turn before the next attempt.
    """
    hooks = BackoffHooks(initial=5e-324, longest=5e-324)
    with assert_checkpoints():
        await decide(hooks, hook, HookAction.RAISE)


async def test_each_failure_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Each failure is a warning that says what failed, why, and when it is tried again.
    """
    hooks = BackoffHooks(initial=2, longest=2, source=random.Random(7))
    expected = pauses(7, 6, initial=2, longest=2)
    for hook in [*DECIDING, *DECIDING]:
        await decide(hooks, hook, HookAction.RAISE)
    what = ["reading the next task", "claiming due tasks", "writing changes"]
    assert [
        (each.name, each.levelno, each.getMessage(), each.exc_info and each.exc_info[1])
        for each in caplog.records
    ] == [
        (
            "trio_gokugen.hooks",
            logging.WARNING,
            f"{each} failed, {row} in a row, to be retried in {pause:.3g} s: disk full",
            DOWN if row == 1 else None,
        )
        for (row, each), pause in zip(
            [(row, each) for row in (1, 2) for each in what], expected, strict=True
        )
    ]


async def test_programs_back_off_differently(autojump_clock: MockClock) -> None:
    """
    Two programs whose repository comes back do not return to it at the same moment.
    """
    first, second = BackoffHooks(), BackoffHooks()
    rows: list[list[float]] = [
        [await time_of(hooks, "on_update_error") for _ in range(4)]
        for hooks in (first, second)
    ]
    assert rows[0] != rows[1]


@pytest.mark.parametrize(
    ("initial", "longest"),
    [(0, 1), (-1, 1), (2, 1), (math.nan, 1), (1, math.nan)],
    ids=str,
)
def test_pauses_that_make_no_sense_are_refused(initial: float, longest: float) -> None:
    """
    A first pause that is not positive, or longer than the longest, is refused.
    """
    with pytest.raises(ValueError, match=r"^initial: must be positive and at most longest"):
        BackoffHooks(initial=initial, longest=longest)
