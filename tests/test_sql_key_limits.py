"""Limits by value on a database: it is asked only for what there is room for."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from databases import engine_of, url_for_engine
from sqlalchemy import Engine, create_engine, event, text
from support import NOON, noon, stored

from trio_gokugen import Interval, KeyLimit, Late, Schedule
from trio_gokugen.abc import KeyRoom, PutSchedule, TaskFilter
from trio_gokugen.sql import _claims, open_sql_repository

pytestmark = pytest.mark.tables


def counted(engine: Engine) -> list[str]:
    """What is said to the database from now on."""
    said: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_: object, __: object, words: str, *rest: object) -> None:
        said.append(words)

    return said


def full_of(name: str, value: Any, limit: int = 1) -> TaskFilter:
    """One that has no room for tasks with this value, and so much for each other."""
    room = KeyRoom(KeyLimit(limit, param=name))
    for _ in range(limit):
        room.begin(stored("running", param={name: value}))
    return TaskFilter(rooms=(room,))


async def steps(engine: Engine, name: str, value: Any, count: int) -> int:
    """How much is said to find that none of so many tasks has room, and that one has."""
    tasks = [stored(f"x{n}", param={name: value}) for n in range(count)]
    async with open_sql_repository(engine) as repository:
        await repository.add(tasks)
        said = counted(engine)
        only = full_of(name, value)
        assert await repository.get_next(only) is None
        claimed = await repository.claim(5, NOON, only)
        assert claimed.tasks == []
        count = len(said)
        claimed = await repository.claim(5, NOON, full_of(name, "another"))
        assert len(claimed.tasks) == 1
        return count


NAMES = ["n", 'so "called"', "back\\slash\\", "a\tb\x1fc", "\\u0041", "é\u2028😀", "$.a[0]"]


@pytest.mark.parametrize("name", NAMES)
async def test_names_of_any_kind_are_looked_for_in_the_database(
    database_url: str, name: str
) -> None:
    """
    Whatever the name of a value has in it, those for which there is no room are not read.
    """
    with engine_of(database_url) as engine:
        assert await steps(engine, name, "x", 60) == await plain_steps(database_url)


async def plain_steps(url: str) -> int:
    """The same with the plainest of names, of which there are none left."""
    with engine_of(url) as engine:
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM gokugen_task"))
        return await steps(engine, "k", 7, 3)


VALUES = ["é\u2028😀", 'a"\\\t\x1f\x7f', 1, 1.0, -0.0, 1e22, 5e-324, 2**63 - 1, True, ""]


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("value", VALUES)
async def test_values_are_found_however_an_engine_writes_them(
    database_url: str, value: Any, *, ensure_ascii: bool
) -> None:
    """
    An engine of the user's own may write JSON with escapes, or without.
    """

    def serialized(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii)

    engine = create_engine(url_for_engine(database_url), json_serializer=serialized)
    try:
        assert await steps(engine, "k", value, 60) == await plain_steps(database_url)
    finally:
        engine.dispose()


@pytest.mark.parametrize("name", ['so "called"', "k"])
async def test_what_somebody_else_has_written(database_url: str, name: str) -> None:
    """
    Values that are written in yet another way are looked through in pages: as many of them
    as there are thousands of tasks.
    """
    with engine_of(database_url) as engine:
        async with open_sql_repository(engine) as repository:
            tasks = [stored(f"x{n}", param={name: "x"}) for n in range(3_000)]
            await repository.add([*tasks, stored("y", param={name: "y"})])
            write_with_escapes(engine)
            said = counted(engine)
            only = full_of(name, "x")
            first = await repository.get_next(only)
            assert first is not None
            assert first.id == "y"
            claimed = await repository.claim(2, NOON, only)
            assert [task.id for task in claimed.tasks] == ["y"]
            assert len(said) < 40


def write_with_escapes(engine: Engine) -> None:
    """Write the letters that are values as nobody does."""
    for letter in "xy":
        words = "UPDATE gokugen_task SET param = {}"
        column = "replace(CAST(param AS text), :letter, :escape)"
        if engine.dialect.name == "postgresql":
            column = f"CAST({column} AS json)"
        values = {
            "letter": json.dumps(letter),
            "escape": f'"\\u{ord(letter):04x}"',
        }
        with engine.begin() as connection:
            connection.execute(text(words.format(column)), values)


@pytest.mark.parametrize("seed", range(10))
async def test_page_by_page_as_from_a_list(
    monkeypatch: pytest.MonkeyPatch, database_url: str, seed: int
) -> None:
    """
    Whatever is passed over on the way, and of whatever moments, priorities, works and
    ages: the same is claimed as from a list, and in its order.
    """
    monkeypatch.setattr(_claims, "CHUNK", 4)
    choose = random.Random(seed)
    tasks = [
        stored(
            f"{n:03}",
            choose.choice("vw"),
            choose.randrange(3),
            param={"k": choose.choice("xxxy")},
            priority=choose.randrange(-1, 2),
        )
        for n in range(60)
    ]
    expected = sorted(
        (task for task in tasks if task.param == {"k": "y"}),
        key=lambda task: (task.scheduled_at, -task.priority, task.id),
    )
    only = full_of("k", "x", 7)
    with engine_of(database_url) as engine:
        async with open_sql_repository(engine) as repository:
            await repository.add(tasks)
            write_with_escapes(engine)
            while expected:
                limit = choose.randint(1, 9)
                assert await repository.get_next(only) == expected[0]
                claimed = await repository.claim(limit, noon(9), only)
                ids = [task.id for task in claimed.tasks]
                assert ids == [task.id for task in expected[: min(limit, 7)]]
                del expected[: len(ids)]
            assert await repository.get_next(only) is None


async def test_occurrences_are_made_where_others_have_been_passed_over(
    database_url: str,
) -> None:
    """
    A claim takes what it has made itself, though it has already looked behind that.
    """
    schedule = Schedule(
        id="s",
        trigger=Interval(1, anchor=NOON),
        work_id="note",
        param={"k": "z"},
        overlap="allow",
        late=Late(run="all"),
        created_at=NOON,
    )
    tasks = [stored(f"x{n}", seconds=3, param={"k": "x"}) for n in range(3)]
    with engine_of(database_url) as engine:
        async with open_sql_repository(engine) as repository:
            await repository.change_schedule(PutSchedule(schedule, NOON))
            await repository.add(tasks)
            write_with_escapes(engine)
            claimed = await repository.claim(99, noon(6), full_of("k", "x", 9))
            found = [(task.scheduled_at - NOON).total_seconds() for task in claimed.tasks]
            assert found == [1, 2, 3, 4, 5, 6]
