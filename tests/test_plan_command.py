"""What `python -m trio_gokugen plan` prints, as a program and within this one."""

from __future__ import annotations

import errno
import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trio_gokugen._cli import main

CRONTAB = """\
CRON_TZ=Europe/Berlin
30 2 * * * back_up
@every 7h 刻限 id=時
"""
WINTER = ["--from", "2030-01-01", "--to", "2030-01-02"]


@pytest.fixture
def crontab(tmp_path: Path) -> str:
    path = tmp_path / "crontab"
    path.write_text(CRONTAB, encoding="utf-8")
    return str(path)


def run(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "trio_gokugen", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **(environment or {})},
        timeout=60,
        check=False,
    )


# -- as a program ---------------------------------------------------------------------


def test_a_plan_as_a_table(crontab: str) -> None:
    """
    The program prints the plan of a file's schedules as a table, in UTC.
    """
    done = run("plan", crontab, *WINTER)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        """\
schedule  nominal time               starts                     why
back_up   2030-01-01 01:30:00+00:00  2030-01-01 01:30:00+00:00  runs: on time
時         2030-01-01 06:00:00+00:00  2030-01-01 06:00:00+00:00  runs: on time
時         2030-01-01 13:00:00+00:00  2030-01-01 13:00:00+00:00  runs: on time
時         2030-01-01 20:00:00+00:00  2030-01-01 20:00:00+00:00  runs: on time
"""
    )


def test_a_plan_as_json(crontab: str) -> None:
    """
    With --json, the program prints a list of objects, in the zone that it is told.
    """
    done = run("plan", "--tz", "Europe/Berlin", crontab, "--json", *WINTER)
    assert (done.returncode, done.stderr) == (0, "")
    _, second, *_, last = json.loads(done.stdout)
    assert second == {
        "schedule_id": "back_up",
        "nominal_at": "2030-01-01T02:30:00+01:00",
        "due_at": "2030-01-01T02:30:00+01:00",
        "runs_at": "2030-01-01T02:30:00+01:00",
        "outcome": "runs",
        "why": "on time",
    }
    assert last["schedule_id"] == "時"


def test_a_bad_file(tmp_path: Path) -> None:
    """
    Of a bad file all errors go to the standard error, and the program ends with status 2.
    """
    path = tmp_path / "x.toml"
    path.write_text("a = 1\n\n[schedules.s]\nevery = 0\nwork_id = 'w'\n", encoding="utf-8")
    done = run("plan", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{path}, line 1: 'a' is not known: all is within [schedules.NAME] or"
        " [commands.NAME]\n"
        f"{path}, line 4: schedule 's': every: must be more than nothing, not 0\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["plan"],
        ["plam", "x"],
        ["plan", "x", "--from", "noon"],
        ["plan", "x", "--jso"],
    ],
    ids=str,
)
def test_what_cannot_be_asked(arguments: Sequence[str]) -> None:
    """
    Who asks for what there is not is told how to ask, and the program ends with status 2.
    """
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python -m trio_gokugen")


def test_from_a_moment_of_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    What is due at the first moment belongs to the plan, and what is at the last does not:
    so plans of periods that follow on each other have all, and nothing twice.
    """
    path = tmp_path / "crontab"
    path.write_text("0 0 * * * w", encoding="utf-8")
    days = [
        [each["runs_at"] for each in json.loads(capsys.readouterr().out)]
        for first, last in (("01", "02"), ("02", "04"))
        if main(
            [
                "plan",
                str(path),
                "--json",
                "--from",
                f"2030-01-{first}",
                "--to",
                f"2030-01-{last}",
            ]
        )
        == 0
    ]
    assert [[each[:10] for each in day] for day in days] == [
        ["2030-01-01"],
        ["2030-01-02", "2030-01-03"],
    ]


def test_a_period_that_ends_before_it_begins(
    crontab: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A period with its ends the wrong way round is refused.
    """
    assert main(["plan", crontab, "--from", "2030-01-02", "--to", "2030-01-01"]) == 2
    assert capsys.readouterr().err.startswith("--to: 2030-01-01T00:00:00+00:00 is before")


def test_letters_that_cannot_be_printed(crontab: str) -> None:
    """
    An id that the output has no letters for is printed by escapes.
    """
    done = run("plan", crontab, *WINTER, environment={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n\\u6642 " in done.stdout


def test_who_reads_goes_away(tmp_path: Path) -> None:
    """
    The program ends without complaint when its reader has seen enough.
    """
    path = tmp_path / "crontab"
    path.write_text("@every 5s w", encoding="utf-8")
    program = [sys.executable, "-m", "trio_gokugen", "plan", str(path), *WINTER]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"schedule")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_nothing_can_be_written(crontab: str) -> None:
    """
    If the plan cannot be written the program says so, on one line.
    """
    program = [sys.executable, "-m", "trio_gokugen", "plan", crontab, *WINTER]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        run = subprocess.run(
            program, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "No space left" in run.stderr


# -- within this one ------------------------------------------------------------------


def test_the_module_is_a_program(
    crontab: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The package, run as a module, does what its command line says.
    """
    monkeypatch.setattr(sys, "argv", ["trio_gokugen", "plan", crontab, *WINTER])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("trio_gokugen", run_name="__main__")
    assert caught.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_from_now_for_a_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A plan is for a day, and from now on, unless it is told otherwise.
    """
    path = tmp_path / "crontab"
    path.write_text("@every 1h w", encoding="utf-8")
    before = datetime.now(UTC)
    assert main(["plan", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    moments = [datetime.fromisoformat(each["runs_at"]) for each in found]
    assert len(moments) == 24
    assert before < moments[0] < datetime.now(UTC) + timedelta(hours=1)
    since = "2030-06-01T12:00:00.5+02:00"
    assert main(["plan", str(path), "--json", "--from", since]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["runs_at"] == "2030-06-01T11:00:00+00:00"
    assert found[-1]["runs_at"] == "2030-06-02T10:00:00+00:00"


def test_the_zone_is_that_of_moments(
    crontab: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A moment with no offset is one of the zone that is told.
    """
    period = ["--from", "2030-01-01T02:30:00", "--to", "2030-01-01T02:30:00.000001"]
    assert main(["plan", crontab, *period]) == 0
    assert "back_up" not in capsys.readouterr().out
    berlin = ["--from", "2030-01-01T02:29:59", "--to", "2030-01-01T02:30:00.000001"]
    assert main(["plan", crontab, "--tz", "Europe/Berlin", *berlin]) == 0
    assert "back_up   2030-01-01 02:30:00+01:00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.toml"], "nowhere.toml"),
        (["crontab", "--tz", "Mars"], "tz: 'Mars' is not known here"),
        (["crontab", "--from", "9999-12-31"], "date value out of range"),
    ],
    ids=["file", "zone", "year"],
)
def test_what_cannot_be_planned(
    crontab: str,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """
    What cannot be planned is told, and the status is 2.
    """
    monkeypatch.chdir(Path(crontab).parent)
    assert main(["plan", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err


def test_what_is_no_moment(capsys: pytest.CaptureFixture[str]) -> None:
    """
    What is no moment is told by the option's name, and the status is 2.
    """
    with pytest.raises(SystemExit) as caught:
        main(["plan", "crontab", "--to", "noon"])
    assert caught.value.code == 2
    assert "argument --to: 'noon' is not a moment: write" in capsys.readouterr().err


class Full(io.StringIO):
    """A file on a disk that is full."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self.file = file

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fileno(self) -> int:
        return self.file


def test_the_disk_is_full(
    crontab: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """
    If the plan cannot be written that is told, and the status is 1.
    """
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", Full(file.fileno()))
        assert main(["plan", crontab, *WINTER]) == 1
        monkeypatch.undo()
    assert "No space left on device" in capsys.readouterr().err


def test_any_output_will_do(crontab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The output may be any file of text; one whose reader has gone is left alone.
    """
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    assert main(["plan", crontab, *WINTER]) == 0
    assert text.getvalue().startswith("schedule")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["plan", crontab, *WINTER]) == 0
