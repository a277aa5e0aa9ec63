"""Registries joined by ``|``."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from leftovers import nothing_left
from support import NOON, noon
from trio.testing import MockClock

from trio_gokugen import (
    Command,
    CommandRegistry,
    ConditionExistsError,
    ConditionNotFoundError,
    HeapRepository,
    Interval,
    Schedule,
    Task,
    TaskState,
    TrioClock,
    WorkExistsError,
    WorkNotFoundError,
    WorkRegistry,
    open_scheduler,
)
from trio_gokugen.abc import Condition, Work
from trio_gokugen.abc import WorkRegistry as AnyRegistry


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Nothing is left after any of these tests."""
    with nothing_left(tmp_path / "temporary", monkeypatch):
        yield


async def yes(_: Schedule, __: Task | None) -> bool:
    return True


async def no(_: Schedule, __: Task | None) -> bool:
    return False


def works(*names: str) -> WorkRegistry:
    registry = WorkRegistry()
    for name in names:
        register(registry, name)
    return registry


def register(registry: WorkRegistry, name: str) -> None:
    async def work() -> str:
        return name

    registry.register(name, work)


def commands(*names: str) -> CommandRegistry:
    return CommandRegistry({name: Command(["true"]) for name in names})


@attrs.define(eq=False)
class Foreign:
    """A registry of somebody's own, which does no more than the Protocol asks."""

    names: set[str]
    conditions: dict[str, Condition] = attrs.field(factory=dict[str, Condition])

    @property
    def work_ids(self) -> frozenset[str]:
        return frozenset(self.names)  # another object each time

    def get(self, work_id: str) -> Work:
        if work_id not in self.names:
            raise WorkNotFoundError(work_id)
        return Work(work_id, yes)

    def get_condition(self, name: str) -> Condition:
        try:
            return self.conditions[name]
        except KeyError:
            raise ConditionNotFoundError(name) from None


def test_what_is_joined_has_the_works_of_all() -> None:
    """
    Each work is that of its own registry, whichever is on the left.
    """
    a, b = works("a", "both"), commands("b")
    for joined in (a | b, b | a):
        assert joined.work_ids == {"a", "b", "both"}
        for part in (a, b):
            for name in part.work_ids:
                assert joined.get(name) is part.get(name)
        with pytest.raises(WorkNotFoundError, match="'c'"):
            joined.get("c")


def test_more_than_two_are_joined_to_one() -> None:
    """
    It makes no difference in what order many are joined, nor if one of them is in twice.
    """
    a, b, c = works("a"), commands("b"), works("c")
    for joined in ((a | b) | c, a | (b | c), (a | b) | (b | c), a | a | b | c):
        assert joined.parts == (a, b, c)
        assert joined.work_ids == {"a", "b", "c"}


def test_a_registry_of_ones_own_can_be_joined() -> None:
    """
    Whatever is a registry can be joined with one of ours, from either side.
    """
    foreign: AnyRegistry = Foreign({"f"}, {"tide": yes})
    a = works("a")
    for joined in (a | foreign, foreign | a, commands("c") | foreign):
        assert joined.get("f").function is yes
        assert joined.get_condition("tide") is yes
        assert joined.work_ids is joined.work_ids
        assert joined.condition_names == set()  # it does not tell
    assert (a | foreign).work_ids == {"a", "f"}


@pytest.mark.parametrize("other", [{}, None, 1, "works", WorkRegistry, object()])
def test_what_is_no_registry_cannot_be_joined(other: Any) -> None:
    """
    To join a registry with anything else is a `TypeError` of Python's own.
    """
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = works("a") | other
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = other | commands("a")


# -- names ----------------------------------------------------------------------------


def test_two_works_of_one_name_are_refused() -> None:
    """
    What has a work of the same name cannot be joined, and the error names it.
    """
    for left, right in (
        (works("a", "x"), commands("x", "y", "z")),
        (works("a") | works("x"), commands("x")),
        (commands("x"), Foreign({"x"})),
    ):
        with pytest.raises(WorkExistsError, match="'x'"):
            _ = left | right


def test_two_conditions_of_one_name_are_refused() -> None:
    """
    What has a condition of the same name cannot be joined, and the error names it.
    """
    a, b, c = works("a"), works("b"), commands("c")
    a.condition("tide", yes)
    b.condition("tide", no)
    assert (a | c).condition_names == {"tide"}
    for left, right in ((a, b), (c | a, b)):
        with pytest.raises(ConditionExistsError, match="'tide'"):
            _ = left | right


def test_of_what_comes_later_the_first_counts() -> None:
    """
    If two parts come to have a work, or a condition, of one name, it is that of the left
    one, whichever was first.
    """
    a, b = works("a"), works("b", "x")
    joined = a | b
    assert joined.get("x") is b.get("x")
    ids = joined.work_ids
    register(a, "x")
    assert joined.get("x") is a.get("x")
    assert joined.work_ids is ids
    b.condition("tide", no)
    assert joined.get_condition("tide") is no
    a.condition("tide", yes)
    assert joined.get_condition("tide") is yes


def test_conditions_come_from_any_part() -> None:
    """
    A condition is found in whichever part has it.
    """
    a, b = works("a"), commands("b")
    joined = b | a
    with pytest.raises(ConditionNotFoundError, match="'tide'"):
        joined.get_condition("tide")
    a.condition("tide", yes)
    assert joined.get_condition("tide") is yes
    assert joined.condition_names == {"tide"}


def test_the_same_names_are_the_same_object() -> None:
    """
    `work_ids` is the same object for as long as the names are the same, and another one as
    soon as they are not.
    """
    a, b, foreign = works("a"), commands("b"), Foreign({"f"})
    joined = a | b | foreign
    first = joined.work_ids
    assert first == {"a", "b", "f"}
    assert joined.work_ids is first
    b.register("c", Command(["true"]))
    second = joined.work_ids
    assert second == {"a", "b", "c", "f"}
    assert second is not first
    assert joined.work_ids is second
    foreign.names.add("g")
    assert joined.work_ids == second | {"g"}
    foreign.names.discard("g")
    register(a, "f")  # which is there already
    again = joined.work_ids
    assert again == second
    assert joined.work_ids is again
    empty = WorkRegistry() | CommandRegistry()
    assert empty.work_ids == set()
    assert empty.work_ids is empty.work_ids


# -- at work --------------------------------------------------------------------------


async def test_a_scheduler_runs_what_is_joined(autojump_clock: MockClock) -> None:
    """
    Functions and commands are run side by side, and a schedule of a command may ask a
    condition of the other part.
    """
    a, b = WorkRegistry(), CommandRegistry({"print": Command(["echo", "{what}"])})
    asked: list[str] = []

    @a.register(retain=True)
    async def note(what: str) -> str:
        return what

    @a.condition
    async def once(schedule: Schedule, last: Task | None) -> bool:
        asked.append(schedule.id)
        return last is None

    async with open_scheduler(a | b, clock=TrioClock(NOON)) as scheduler:
        noted = await scheduler.add_task("note", {"what": "x"}, after=0)
        printed = await scheduler.add_task("print", {"what": "x"}, after=0)
        assert (await scheduler.wait(noted.id)).result == "x"
        result: Any = (await scheduler.wait(printed.id)).result
        assert result["stdout"] == "x\n"
        await scheduler.add_schedule(
            "s", Interval(60, anchor=noon(60)), "print", {"what": "y"}, when="once"
        )
        await trio.sleep(150)
        await scheduler.remove_schedule("s")
    assert asked == ["s", "s"]


async def test_what_is_registered_later_is_run(autojump_clock: MockClock) -> None:
    """
    A stored task whose command is registered while the scheduler runs, with a part, is
    run once a task of that part is added.
    """
    repository = HeapRepository()
    await repository.add(
        [Task(id="old", work_id="late", scheduled_at=NOON, created_at=NOON)]
    )
    a, b = works("a"), CommandRegistry()
    async with open_scheduler(a | b, repository, clock=TrioClock(NOON)) as scheduler:
        await trio.sleep(10)
        assert (await scheduler.get("old")).state is TaskState.SCHEDULED
        b.register("late", Command(["true"]))
        await scheduler.add_task("late", after=0)
        assert (await scheduler.wait("old")).state is TaskState.DONE
