"""Trio's order of tasks, made the same every time.

Of the tasks that can run next, Trio runs some first and some last, by chance, so that no
program comes to count on an order. A failure that needs a certain order is rare then, and
gone when one looks for it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from unittest import mock

# Trio has no public way to do this. These names are what its own plugin for hypothesis
# uses, and the tests of this module fail if they lose their meaning.
from trio._core import _run  # pyright: ignore[reportPrivateUsage]


@contextmanager
def seeded_order(seed: int) -> Generator[None]:
    """While in the block, the order in which Trio runs tasks depends on the seed alone.

    Put it around ``trio.run``, to replay a run: the same seed, the same order::

        for seed in range(1_000):
            with seeded_order(seed):
                trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    What comes from outside of Trio, threads for example, comes when it comes. It is for
    the whole process: no other Trio run should be under way in another thread.
    """
    source = _run._r  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    state = source.getstate()
    with mock.patch.object(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", new=True):
        source.seed(seed)
        try:
            yield
        finally:
            source.setstate(state)
