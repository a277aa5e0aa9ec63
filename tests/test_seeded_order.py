"""Trio's order of tasks, replayed from a seed."""

from __future__ import annotations

import pytest
import trio
from trio._core import _run

from trio_gokugen.testing import seeded_order


async def order_of_tasks() -> list[int]:
    """The order in which many tasks take many steps."""
    order: list[int] = []

    async def take_steps(number: int) -> None:
        for _ in range(10):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(take_steps, number)
    return order


def seeded_run(seed: int) -> list[int]:
    with seeded_order(seed):
        return trio.run(order_of_tasks)


def test_a_seed_gives_an_order() -> None:
    """
    Every run with the same seed has the same order, also after runs without one.
    """
    first = seeded_run(7)
    for _ in range(20):
        trio.run(order_of_tasks)
        assert seeded_run(7) == first


def test_seeds_give_many_orders() -> None:
    """
    Other seeds have other orders, so that a loop over seeds tries many.
    """
    orders = {tuple(seeded_run(seed)) for seed in range(50)}
    assert len(orders) == 50
    assert {order[0] for order in orders} == set(range(8))


async def test_it_works_within_a_run() -> None:
    """
    Used inside of a Trio run, it orders what happens in the block.
    """
    orders: list[list[int]] = []
    for _ in range(2):
        await trio.lowlevel.checkpoint()
        with seeded_order(3):
            orders.append(await order_of_tasks())
    assert orders[0] == orders[1]


@pytest.mark.parametrize("before", [False, True])
def test_all_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    """
    Trio's own source of chance goes on where it was, after an error as well.
    """
    monkeypatch.setattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", before)
    state = _run._r.getstate()

    def fail() -> None:
        with seeded_order(1):
            assert _run._ALLOW_DETERMINISTIC_SCHEDULING
            _run._r.random()
            with seeded_order(2):
                _run._r.random()
            assert _run._ALLOW_DETERMINISTIC_SCHEDULING
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert _run._ALLOW_DETERMINISTIC_SCHEDULING is before
    assert _run._r.getstate() == state
