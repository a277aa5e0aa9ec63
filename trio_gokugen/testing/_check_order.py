"""Checks: who goes first."""

from __future__ import annotations

from collections.abc import Sequence

from trio_gokugen._task import TaskUpdate
from trio_gokugen.abc import RecoverAction, TaskFilter, TaskRepository

from ._expect import expect_equal
from ._repository_kit import EPOCH, RepositoryChecks, claimed_ids, moment, new

checks = RepositoryChecks()


async def _expect_order(repository: TaskRepository, expected: Sequence[str]) -> None:
    """Claim one by one, and see whether `get_next` had told each before."""
    for task_id in expected:
        head = await repository.get_next()
        expect_equal(
            "the next task by get_next", None if head is None else head.id, task_id
        )
        expect_equal("the next task by claim", await claimed_ids(repository, 1), [task_id])
    expect_equal("what is left", await repository.get_next(), None)


@checks
async def the_earliest_goes_first(repository: TaskRepository) -> None:
    """Among pending tasks the one with the earliest `scheduled_at` is next."""
    await repository.add([new("late", 3, priority=9), new("later", 4)])
    await repository.add([new("soon", 1), new("sooner", 0.999999), new("then", 2)])
    await _expect_order(repository, ["sooner", "soon", "then", "late", "later"])


@checks
async def then_the_largest_priority(repository: TaskRepository) -> None:
    """Among tasks of the same moment the one with the largest priority is next."""
    await repository.add([new("0"), new("-1", priority=-1), new("9", priority=9)])
    await repository.add([new("10", priority=10), new("least", priority=-(2**63))])
    await _expect_order(repository, ["10", "9", "0", "-1", "least"])


@checks
async def then_the_oldest(repository: TaskRepository) -> None:
    """Among equals the one added first is next, whatever its id and `created_at`."""
    await repository.add([new("z"), new("y", created_at=moment(-1))])
    await repository.add([new("x", created_at=moment(-9))])
    await repository.add([new("zz"), new("a", created_at=moment(9)), new("m")])
    await _expect_order(repository, ["z", "y", "x", "zz", "a", "m"])


@checks
async def a_claim_is_in_order(repository: TaskRepository) -> None:
    """The tasks of one claim come in the same order."""
    await repository.add([new("z", 2), new("y", 1), new("x", 2), new("w", 2)])
    await repository.update("w", TaskUpdate(priority=1))
    expect_equal("a claim", await claimed_ids(repository), ["y", "w", "z", "x"])


@checks
async def the_order_is_one_for_all_works(repository: TaskRepository) -> None:
    """Which work a task is of plays no role in the order."""
    works = enumerate(("b", "a", "b", "c", "a", "a"))
    tasks = [new(str(number), work_id=work_id) for number, work_id in works]
    await repository.add(tasks)
    for number in range(3):
        await repository.update(str(number), TaskUpdate(scheduled_at=moment(1)))
    await _expect_order(repository, ["3", "4", "5", "0", "1", "2"])


@checks
async def an_update_moves_the_task(repository: TaskRepository) -> None:
    """A new `scheduled_at` or priority counts at once, in either direction."""
    await repository.add([new(name, 5) for name in "abcdef"])
    await repository.update("f", TaskUpdate(scheduled_at=moment(1)))
    await repository.update("a", TaskUpdate(scheduled_at=moment(9)))
    await repository.update("e", TaskUpdate(priority=1))
    await repository.update("b", TaskUpdate(priority=-1))
    await _expect_order(repository, ["f", "e", "c", "d", "b", "a"])


@checks
async def an_update_keeps_the_place(repository: TaskRepository) -> None:
    """An updated task stays as old as it was."""
    await repository.add([new(name, 5) for name in "abc"])
    for update in (
        TaskUpdate(priority=7),
        TaskUpdate(priority=0),
        TaskUpdate(scheduled_at=moment(9)),
        TaskUpdate(scheduled_at=moment(5)),
        TaskUpdate(work_id="other"),
        TaskUpdate(param={"b": 1}, deadline=moment(99_999)),
    ):
        await repository.update("a", update)
    await _expect_order(repository, ["a", "b", "c"])


@checks
async def a_revert_keeps_the_place(repository: TaskRepository) -> None:
    """A task that was put back is as old as before its run."""
    await repository.add([new(name) for name in "abc"])
    claimed = await repository.claim(2, EPOCH)
    for run in reversed(claimed.tasks):
        await repository.revert(run)
    await _expect_order(repository, ["a", "b", "c"])


@checks
async def recovery_keeps_the_place(repository: TaskRepository) -> None:
    """A recovered task is as old as before its run."""
    await repository.add([new(name) for name in "abc"])
    await repository.claim(2, EPOCH)
    await repository.recover(RecoverAction.REVERT, EPOCH)
    await _expect_order(repository, ["a", "b", "c"])


@checks
async def get_next_tells_due_or_not(repository: TaskRepository) -> None:
    """The first pending task is told long before it is due, and then stays pending."""
    expect_equal("the next task of none", await repository.get_next(), None)
    task = new("a", 5_000_000)
    await repository.add([task])
    for _ in range(2):
        expect_equal("the next task", await repository.get_next(), task)


@checks
async def get_next_respects_the_filter(repository: TaskRepository) -> None:
    """Only tasks of the works named in the filter are told."""
    await repository.add([new("a", 1, work_id="one"), new("b", 2, work_id="two")])
    for work_ids, expected in (
        (None, "a"),
        ({"one", "two"}, "a"),
        ({"two"}, "b"),
        ({"three", "two"}, "b"),
        ({"three"}, None),
        ((), None),
    ):
        only = TaskFilter(None if work_ids is None else frozenset(work_ids))
        head = await repository.get_next(only)
        expect_equal(
            f"the next task of {work_ids}", None if head is None else head.id, expected
        )


@checks
async def the_first_of_many_is_found(repository: TaskRepository) -> None:
    """With many tasks that come, move and go, each is next when it is its turn."""
    await repository.add([new(f"t{n}", n * 37 % 101) for n in range(100)])
    for n in range(0, 100, 3):
        await repository.cancel(f"t{n}", EPOCH)
    for n in range(1, 100, 3):
        await repository.update(f"t{n}", TaskUpdate(scheduled_at=moment(200 - n)))
    moved = {f"t{n}": 200 - n for n in range(1, 100, 3)}
    left = moved | {f"t{n}": n * 37 % 101 for n in range(2, 100, 3)}
    await _expect_order(repository, sorted(left, key=left.__getitem__))


@checks
async def pending_tasks_are_counted(repository: TaskRepository) -> None:
    """Scheduled tasks are counted by their work, and no others."""
    expect_equal("pending tasks of none", dict(await repository.count_pending()), {})
    await repository.add([new(f"a{n}", work_id="a") for n in range(5)])
    await repository.add([new(f"b{n}", 50, work_id="b") for n in range(3)])
    await repository.cancel("a0", EPOCH)
    run = await repository.mark_dispatched("a1", EPOCH)
    await repository.mark_dispatched("a2", EPOCH)
    pending = dict(await repository.count_pending())
    expect_equal("pending tasks", pending, {"a": 2, "b": 3})
    await repository.revert(run)
    await repository.update("b0", TaskUpdate(work_id="a"))
    pending = dict(await repository.count_pending())
    expect_equal("pending tasks, later", pending, {"a": 4, "b": 2})


@checks
async def pending_tasks_are_counted_by_pool(repository: TaskRepository) -> None:
    """Scheduled tasks that name a pool are counted by it, whatever their work."""
    await repository.add([new(f"n{n}") for n in range(5)])
    expect_equal("pools that none names", dict(await repository.count_pools()), {})
    await repository.add([new(f"p{n}", pool="p", work_id=f"w{n % 2}") for n in range(5)])
    await repository.add([new(f"P{n}", 50, pool="P", work_id="w0") for n in range(3)])
    await repository.cancel("p0", EPOCH)
    run = await repository.mark_dispatched("p1", EPOCH)
    await repository.mark_dispatched("p2", EPOCH)
    pools = dict(await repository.count_pools())
    expect_equal("pending tasks of pools", pools, {"p": 2, "P": 3})
    await repository.revert(run)
    await repository.update("P0", TaskUpdate(pool="p"))
    await repository.update("P1", TaskUpdate(pool=None))
    await repository.update("n0", TaskUpdate(pool="q"))
    pools = dict(await repository.count_pools())
    expect_equal("pending tasks of pools, later", pools, {"p": 4, "P": 1, "q": 1})
    await repository.claim(10, EPOCH)
    pools = dict(await repository.count_pools())
    expect_equal("pending tasks of pools, in the end", pools, {"P": 1, "p": 1})
