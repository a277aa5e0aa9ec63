"""Measures, prints the table, and writes it to ``results.md`` beside this file.

    python -m benchmarks [--quick] [SUBJECT ...]

Only a whole run is written. ``APSCHEDULER3_PYTHON`` is an interpreter that has
APScheduler 3; ``make bench`` sets all up.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from . import (
    adding,
    backlog,
    commands,
    executors,
    idle,
    lateness,
    memory,
    mix,
    notified,
    pools,
    postgresql,
    processes,
    rivals,
    schedules,
    sqlite,
    throughput,
    triggers,
    year,
)
from ._measure import Row, Scale

RESULTS = Path(__file__).with_name("results.md")

SUBJECTS: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "throughput": throughput.measure,
    "apscheduler4": rivals.measure_4,
    "apscheduler3": rivals.measure_3,
    "adding": adding.measure,
    "mix": mix.measure,
    "memory": memory.measure,
    "commands": commands.measure,
    "triggers": triggers.measure,
    "schedules": schedules.measure,
    "processes": processes.measure,
    "year": year.measure,
    "pools": pools.measure,
    "executors": executors.measure,
    "lateness": lateness.measure,
    "idle": idle.measure,
    "sqlite": sqlite.measure,
    "huey": sqlite.measure_huey,
    "apscheduler4-sqlite": sqlite.measure_apscheduler,
    "postgresql": postgresql.measure,
    "procrastinate": postgresql.measure_procrastinate,
    "pgqueuer": postgresql.measure_pgqueuer,
    "backlog": backlog.measure,
    "notified": notified.measure,
}

HEADS = "what", "against", "ratio: median (quartiles)", "must reach", "reached"

INTRODUCTION = """\
# Benchmark results

Written by `make bench`. Each figure is a ratio of two sides measured in one run, which
took turns, each in a process of its own with the garbage collector enabled. Where
something must be reached at least, it is a speed; at most, a cost.
"""

BY_HAND = "<!-- From here on by hand: `make bench` leaves it as it is. -->"

TO_WRITE = """

## What was missed, why, and what was tried

Not written yet.
"""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("benchmarks")
    parser.add_argument(
        "--quick", action="store_true", help="only see whether it works; no figures"
    )
    parser.add_argument(
        "subjects", metavar="SUBJECT", nargs="*", help=f"of {', '.join(SUBJECTS)}"
    )
    given = parser.parse_args(arguments)
    if unknown := set(given.subjects) - SUBJECTS.keys():
        parser.error(f"unknown subject: {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    for name in given.subjects or SUBJECTS:
        sys.stderr.write(f"{name}\n")
        rows += SUBJECTS[name](Scale(given.quick))
    table = "".join(lines(rows))
    print(f"\n{table}\n{surroundings()}")
    if not given.subjects and not given.quick:
        write(table)


def lines(rows: Iterable[Row]) -> Iterator[str]:
    """The table, readable as text and as Markdown."""
    cells = [HEADS, *(texts(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, tuple("-" * width for width in widths))
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield f"| {' | '.join(padded)} |\n"


def texts(row: Row) -> tuple[str, ...]:
    reached = {True: "yes", False: "no", None: ""}[row.reached]
    return row.what, row.against, row.ratio, row.must_reach, reached


def surroundings() -> str:
    """What it was measured with."""
    return (
        f"Measured with {platform.python_implementation()} {platform.python_version()},"
        f" Trio {metadata.version('trio')}, {os.cpu_count()} processors,"
        f" on {datetime.now(UTC):%d %B %Y}."
    )


def write(table: str) -> None:
    """Replace what is above the mark, and keep what is below."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    kept = old.partition(BY_HAND)[2] or TO_WRITE
    text = f"{INTRODUCTION}\n{table}\n{surroundings()}\n\n{BY_HAND}{kept}"
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
