"""The command line, ``python -m trio_gokugen``: what schedules in a file will do."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import attrs

from ._clock import SystemClock
from ._errors import GokugenError, InvalidTaskError
from ._lengths import TICK
from ._load_schedules import load_schedules
from ._local_time import zone_of
from ._plan import Plan, Planned, plan

DAY = timedelta(days=1)
BAD_INPUT = 2
"""The status of a program that cannot use what it is given; argparse's, too."""

_MOMENTS = "nominal_at", "due_at", "runs_at"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do as the command line says, and return the status of the program."""
    options = _parser().parse_args(arguments)
    # An id may have letters that a pipe on Windows has not.
    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    try:
        planned = _planned(options)
    except (GokugenError, OSError, OverflowError) as error:
        print(error, file=sys.stderr)  # noqa: T201 (it is a program)
        return BAD_INPUT
    try:
        print(_as_json(planned) if options.json else planned, flush=True)  # noqa: T201 (so)
    except OSError as error:
        # Python would complain as it writes the rest at the end.
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0  # who reads has seen enough
        print(error, file=sys.stderr)  # noqa: T201 (so)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trio_gokugen", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="plan")
    command = commands.add_parser(
        "plan",
        help="print what the schedules of a file will run, and when",
        description="Print what the schedules of a file will run, and when.",
        allow_abbrev=False,
    )
    command.add_argument("file", help="TOML if it ends in .toml, a crontab otherwise")
    command.add_argument(
        "--from",
        dest="since",
        metavar="MOMENT",
        type=_moment,
        help="in ISO 8601, such as 2030-01-31T09:00; by default now",
    )
    command.add_argument(
        "--to",
        dest="until",
        metavar="MOMENT",
        type=_moment,
        help="the first moment that is not of interest; by default a day after --from",
    )
    command.add_argument(
        "--tz",
        default="UTC",
        metavar="ZONE",
        help="of moments that have no offset, and of what is printed: Europe/Berlin; by"
        " default UTC",
    )
    command.add_argument("--json", action="store_true", help="print JSON, not a table")
    return parser


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a moment: write it as 2030-01-31T09:00"
        ) from None


def _planned(options: argparse.Namespace) -> Plan:
    zone = zone_of(options.tz)
    start = _aware(options.since, zone) or SystemClock().now()
    end = _aware(options.until, zone) or start + DAY
    if end < start:
        raise InvalidTaskError("--to", f"{end.isoformat()} is before {start.isoformat()}")
    # As if they had been there before: what is due at the start belongs to it.
    found = plan(load_schedules(options.file), start - TICK, end)
    return Plan(_in_zone(each, zone) for each in found)


def _aware(moment: datetime | None, zone: tzinfo) -> datetime | None:
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=zone)


def _in_zone(planned: Planned, zone: tzinfo) -> Planned:
    moments = {field: getattr(planned, field) for field in _MOMENTS}
    return attrs.evolve(
        planned, **{key: each and each.astimezone(zone) for key, each in moments.items()}
    )


def _as_json(planned: Plan) -> str:
    def plain(_: type, __: Any, value: object) -> object:
        return value.isoformat() if isinstance(value, datetime) else value

    rows = [attrs.asdict(each, value_serializer=plain) for each in planned]
    return json.dumps(rows, indent=2)
