"""Schedules in files: TOML and crontabs. What is wrong in them is told, line by line."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_gokugen import (
    At,
    Cron,
    Interval,
    InvalidSchedulesError,
    Late,
    Schedule,
    load_schedules,
    plan,
    trigger_from_json,
)
from trio_gokugen._text_file import LARGEST
from trio_gokugen._toml_lines import DEEPEST, lines_of

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a test that hypothesis runs many times."""
    return tmp_path_factory.mktemp("files")


def load(folder: Path, name: str, text: str | bytes) -> tuple[Schedule, ...]:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_schedules(path)


def errors_of(folder: Path, name: str, text: str | bytes) -> list[tuple[int, str]]:
    with pytest.raises(InvalidSchedulesError) as caught:
        load(folder, name, text)
    assert caught.value.path == str(folder / name)
    return [*caught.value.errors]


def schedule(schedule_id: str, trigger: Any, work_id: str, **fields: Any) -> Schedule:
    return Schedule(
        id=schedule_id, trigger=trigger, work_id=work_id, created_at=LONG_AGO, **fields
    )


# -- TOML -----------------------------------------------------------------------------

EVERYTHING = """\
[schedules.nightly]
work_id = "back_up"
cron = "30 2 * * *"
tz = "Europe/Berlin"
dst = "match"
param = {to = "disk", parts = [1, 2.5, true]}
priority = -3
meta.owner = "ann"
deadline_after = "1h30m"
jitter = 30
late = {window = "2m", run = "all", limit = 7}
overlap = "queue"
paused = true

[schedules."every so often"]
work_id = "poll"
every = "20m"
anchor = 2030-01-01 01:00:00+01:00
after = "end"
jitter = "0.5s"
deadline_after = 60.25

[schedules.often]
work_id = "poll"
every = 7.5

[schedules.working.trigger]
except = [2030-12-25, "2030-12-26"]
of = {cron = "0 9 * * MON-FRI"}
tz = "Asia/Tokyo"

[schedules.working]
work_id = "report"

[schedules.once]
work_id = "report"
trigger = {at = [2030-01-01T12:00:00Z]}
"""


def test_all_that_a_table_may_say(tmp_path: Path) -> None:
    """
    Every argument of a schedule, and every kind of trigger, can be written in TOML.
    """
    working: dict[str, Any] = {
        "except": ["2030-12-25", "2030-12-26"],
        "of": {"cron": "0 9 * * MON-FRI"},
        "tz": "Asia/Tokyo",
    }
    assert load(tmp_path, "all.toml", EVERYTHING) == (
        schedule(
            "nightly",
            Cron("30 2 * * *", "Europe/Berlin", dst="match"),
            "back_up",
            param={"to": "disk", "parts": [1, 2.5, True]},
            priority=-3,
            meta={"owner": "ann"},
            deadline_after=timedelta(hours=1, minutes=30),
            jitter=timedelta(seconds=30),
            late=Late(window=120, run="all", limit=7),
            overlap="queue",
            paused=True,
        ),
        schedule(
            "every so often",
            Interval(1200, anchor=datetime(2030, 1, 1, tzinfo=UTC)),
            "poll",
            after="end",
            jitter=0.5,
            deadline_after=60.25,
        ),
        schedule("often", Interval(7.5), "poll"),
        schedule("working", trigger_from_json(json.dumps(working)), "report"),
        schedule("once", At([datetime(2030, 1, 1, 12, tzinfo=UTC)]), "report"),
    )


def test_what_the_documentation_shows(tmp_path: Path) -> None:
    """
    The files that the documentation shows can be loaded.
    """
    page = (Path(__file__).parent.parent / "docs" / "time.md").read_text(encoding="utf-8")
    [toml] = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    [crontab] = re.findall(r"^```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert [each.id for each in load(tmp_path, "x.toml", toml)] == [
        *("nightly", "look around", "working-days")
    ]
    assert [each.id for each in load(tmp_path, "crontab", crontab)] == [
        *("report", "poll", "working-days")
    ]


def test_a_file_gives_the_same_whenever_it_is_loaded(tmp_path: Path) -> None:
    """
    Schedules of a file are equal whenever it is loaded, and can be planned with.
    """
    first = load(tmp_path, "all.toml", EVERYTHING)
    assert load_schedules(str(tmp_path / "all.toml")) == first
    start = datetime(2030, 1, 1, tzinfo=UTC)
    assert len(plan(first, start, start + timedelta(hours=1))) > 480


HEAD = '[schedules.s]\nwork_id = "w"\nevery = 1\n'
WITHIN = "all is within [schedules.NAME] or [commands.NAME]"
WRONG_TOML = {
    "no TOML": ("a = 1\nb = \n", (2, "is not TOML: Invalid value (at line 2, column 5)")),
    "cut off": ('a = """\n\nx', (3, "is not TOML: Unterminated string")),
    "twice": ("a.b = 1\n[a]\n", (2, "is not TOML: Cannot declare ('a',) twice")),
    "long int": (f"\n# ]\n[x]\na = {'1' * 9999}\n", (4, "is not TOML: Exceeds the limit")),
    "deep": (f"a = 1\nb = {'[' * 9999}\n", (2, "is not TOML: ")),
    "other table": (
        "[comands.s]\n",
        (
            1,
            f"'comands' is not known: {WITHIN}; is 'commands' meant?",
        ),
    ),
    "one table": ("[schedule.s]\n", (1, "'schedule' is not known: all is within")),
    "no tables": ("\nschedules = 3", (2, "schedules: must be tables, [schedules.NAME]")),
    "list of tables": ("[[schedules]]", (1, "schedules: must be tables")),
    "no table": ("[schedules]\ns = 1", (2, "schedule 's': must be a table")),
    "name": ('\n[schedules.""]\nevery = 1\nwork_id = "w"', (2, "id: must not be empty")),
    "unknown": (
        HEAD + 'colour = "x"',
        (4, "schedule 's': colour: is not known: there are"),
    ),
    "odd key": (HEAD + '"a.b\\n" = 1', (4, "schedule 's': a.b\\n: is not known")),
    "no work": ("[schedules.s]\nevery = 1", (1, "work_id: is missing")),
    "work": ("[schedules.s]\nevery = 1\nwork_id = 1", (3, "work_id: must be a string")),
    "param": (HEAD + "param = 1", (4, "param: must be a JSON object")),
    "date": (HEAD + "param.x = 1\nparam.y = 2030-01-01", (5, "param.y: cannot be JSON")),
    "in a table": (
        HEAD + "[schedules.s.param]\n\ny = nan",
        (6, "param.y: must be a finite"),
    ),
    "in a list": (HEAD + "[[schedules.s.param.y]]\nz=inf", (4, "param.y[0].z: must be a")),
    "meta": (
        HEAD + 'meta = {a = [1,\n"\\u0000"]}',
        (4, "meta.a[1]: must not contain a NUL"),
    ),
    "priority": (HEAD + "priority = 1.5", (4, "priority: must be an int")),
    "deadline": (HEAD + "deadline_after = 0", (4, "deadline_after: must be more than")),
    "jitter": (
        HEAD + 'jitter = "5mm"',
        (4, "jitter: must be seconds, or text like '1h30m'"),
    ),
    "jitter bool": (HEAD + "jitter = true", (4, "jitter: must be a timedelta or a number")),
    "jitter nan": (HEAD + "jitter = nan", (4, "jitter: must be a timedelta or a number")),
    "jitter long": (
        HEAD + 'jitter = "999999999w"',
        (4, "jitter: must be seconds, or text"),
    ),
    "negative": (HEAD + "jitter = -1", (4, "jitter: must not be negative")),
    "late": (
        HEAD + 'late = "all"',
        (4, "late: must be a table, as {window = 60}, not 'all'"),
    ),
    "late key": (HEAD + "[schedules.s.late]\nrun='all'\nx=1", (6, "late.x: is not known")),
    "window": (HEAD + 'late.run="all"\nlate.window=-1', (5, "late.window: must not be")),
    "window text": (
        HEAD + 'late.window="1x"',
        (4, "late.window: must be seconds, or text"),
    ),
    "overlap": (HEAD + 'overlap = "x"', (4, "overlap: must be one of 'skip'")),
    "after": (HEAD + "after = 1", (4, "after: must be one of 'start', 'end', not 1")),
    "when": (HEAD + "when = 1", (4, "when: must be a string")),
    "pool": (HEAD + "pool = 1", (4, "pool: must be a string")),
    "paused": (HEAD + "paused = 1", (4, "paused: must be true or false, not 1")),
    "no trigger": ('\n[schedules.s]\nwork_id="w"', (2, "trigger: there must be one of")),
    "two triggers": (HEAD + 'cron = "@daily"', (3, "every: there must be one of cron, ev")),
    "every": ('[schedules.s]\nwork_id="w"\nevery="x"', (3, "every: must be seconds, a t")),
    "tz": (HEAD + 'tz = "UTC"', (4, "tz: goes with cron, which there is not")),
    "anchor": (
        HEAD + "anchor = 2030-01-01T00:00:00",
        (
            4,
            "anchor: has no time zone: write 2030-01-01T00:00:00Z for UTC, or +01:00 and",
        ),
    ),
    "anchor type": (
        HEAD + "anchor = 2030-01-01",
        (4, "anchor: has no time zone: write 2030-01-01T00:00:00Z for UTC"),
    ),
    "anchor as text": (HEAD + 'anchor = "2030"', (4, "anchor: must be an aware datetime")),
    "cron type": ('[schedules.s]\nwork_id="w"\ncron=1', (3, "cron: must be a string")),
    "end of cron": (
        '[schedules.s]\nwork_id="w"\ncron="@daily"\nafter="end"',
        (4, "after: 'end' is for an Interval only"),
    ),
    "trigger": ('[schedules.s]\nwork_id="w"\ntrigger=1', (3, "trigger: trigger: 1 is not")),
    "in a trigger": (
        '[schedules.s]\nwork_id="w"\ntrigger.either=[{every=1},{cron="* * * * * * *"}]',
        (3, "trigger: expression: '* * * * * * *' has 7 fields"),
    ),
    "deep trigger": (
        f'[schedules.s]\nwork_id="w"\ntrigger.{".".join("a" * 4000)}=1',
        (3, "trigger: nests too deep"),
    ),
}


@pytest.mark.parametrize(("text", "error"), WRONG_TOML.values(), ids=WRONG_TOML.keys())
def test_what_is_wrong_in_a_table(
    tmp_path: Path, text: str, error: tuple[int, str]
) -> None:
    """
    What cannot be used of a TOML file is told with its line, schedule and key.
    """
    [(line, message)] = errors_of(tmp_path, "x.toml", text)
    assert line == error[0]
    assert error[1] in message
    assert message.isprintable()


def test_all_that_is_wrong_in_a_file_of_tables(tmp_path: Path) -> None:
    """
    All that is wrong in a TOML file is told at once, in the order of its lines.
    """
    text = """\
x = 1
[schedules.one]
cron = "61 3 * * *"
tz = "Mars"
dst = "x"
late = {window = "1hh", run = "a", limit = 0, foo = 3}
jitter = "5mm"
after = "end"

[schedules.two]
every = 0
anchor = 3
priority = "high"
tz = "UTC"

[schedules.two.param]
since = 2030-01-01
good = 1
until = [2030-01-31, nan]

[schedules.two.meta]
at = 09:00:00
"""
    found = [
        (line, message.removeprefix("schedule ").split(": ")[:2])
        for line, message in errors_of(tmp_path, "x.toml", text)
    ]
    assert found == [
        (1, ["'x' is not known", WITHIN]),
        (2, ["'one'", "work_id"]),
        (3, ["'one'", "cron"]),
        (4, ["'one'", "tz"]),
        (5, ["'one'", "dst"]),
        (6, ["'one'", "late.window"]),
        (6, ["'one'", "late.run"]),
        (6, ["'one'", "late.limit"]),
        (6, ["'one'", "late.foo"]),
        (7, ["'one'", "jitter"]),
        (10, ["'two'", "work_id"]),
        (11, ["'two'", "every"]),
        (12, ["'two'", "anchor"]),
        (13, ["'two'", "priority"]),
        (14, ["'two'", "tz"]),
        (17, ["'two'", "param.since"]),
        (19, ["'two'", "param.until[0]"]),
        (22, ["'two'", "meta.at"]),
    ]


def test_the_error_as_text(tmp_path: Path) -> None:
    """
    The error's text has a line for each thing that is wrong, with the path and the line.
    """
    with pytest.raises(InvalidSchedulesError) as caught:
        load(tmp_path, "x.toml", "a = 1\nb = 2")
    path = tmp_path / "x.toml"
    assert str(caught.value) == (
        f"{path}, line 1: 'a' is not known: {WITHIN}\n"
        f"{path}, line 2: 'b' is not known: {WITHIN}"
    )


# -- where a key is -------------------------------------------------------------------

VALUES = [
    "1",
    '"a # b = [c"',
    r'"quote \" # [" # ]',
    "'back\\' # {",
    '"""\n[schedules.fake]\nx = 1 # "\n"""',
    "'''\n\"\"\"\n[schedules.other]\\'''",
    '"""a"b""c\\""" \n"""',
    '""""quoted"\n"two"""""',
    "''''quoted'\n''two'''''",
    '""""""',
    "''''''",
    '""',
    "[1, # ]\n 2,\n\n [ \"]\", ']' ],\n]",
    '["""\n]""", {a = "}"}]',
    '{a = 1, b = "}", c = {d = [1,\n2]}}',
    "2030-01-01 00:00:00Z",
    '"""\\\n   folded"""  # """',
]
letters = st.text(
    st.characters(codec="utf-8", exclude_characters="\x7f", exclude_categories=["Cs"]),
    max_size=6,
)
keys = st.one_of(letters, st.sampled_from(["a", "b-c", "1_0", "a.b", "[x]", '"', "#", ""]))


@attrs.define
class Writer:
    """Writes TOML in any layout, and notes where keys are."""

    draw: st.DrawFn
    lines: list[str] = attrs.field(factory=list[str])
    where: dict[tuple[str, ...], int] = attrs.field(factory=dict[tuple[str, ...], int])

    def key(self, *parts: str) -> str:
        dot = self.draw(st.sampled_from([".", " . ", ".\t"]))
        return dot.join(map(self.part, parts))

    def part(self, part: str) -> str:
        ways = [json.dumps(part, ensure_ascii=False)]
        if re.fullmatch(r"[A-Za-z0-9_-]+", part):
            ways.append(part)
        if "'" not in part and part.isprintable():
            ways.append(f"'{part}'")
        return self.draw(st.sampled_from(ways))

    def note(self, path: tuple[str, ...]) -> None:
        for end in range(1, len(path) + 1):
            self.where.setdefault(path[:end], len(self.lines) + 1)

    def write(self, text: str) -> None:
        indent = self.draw(st.sampled_from(["", "  ", "\t"]))
        self.lines += (indent + text).split("\n")

    def fill(self) -> None:
        filler = st.sampled_from(["", "# [schedules.x]", "  # a = '''", ' \t# """ [', "#"])
        self.lines += self.draw(st.lists(filler, max_size=2))

    def assign(self, table: tuple[str, ...], path: tuple[str, ...]) -> None:
        self.fill()
        self.note(table + path)
        equals = self.draw(st.sampled_from(["=", " = ", "= "]))
        self.write(self.key(*path) + equals + self.draw(st.sampled_from(VALUES)))


@st.composite
def layouts(draw: st.DrawFn) -> Writer:
    """A TOML file, and where its keys are."""
    writer = Writer(draw)
    names = draw(st.lists(keys, min_size=1, max_size=4, unique=True))
    styles = {name: draw(st.sampled_from(["dotted", "table", "inline"])) for name in names}
    fields = {name: draw(st.lists(keys, max_size=3, unique=True)) for name in names}
    for name, style in styles.items():
        path = "schedules", name
        if style == "inline":
            writer.fill()
            for field in fields[name]:
                writer.note((*path, field))
            writer.note(path)
            inner = ", ".join(f"{writer.part(field)} = 1" for field in fields[name])
            writer.write(f"{writer.key(*path)} = {{{inner}}}")
        elif style == "dotted":
            for field in fields[name]:
                writer.assign((), (*path, field))
    for name, style in styles.items():
        if style == "table":
            path = "schedules", name
            writer.fill()
            writer.note(path)
            writer.write(f"[{writer.key(*path)}] # '''")
            for field in fields[name]:
                more = draw(st.lists(keys, max_size=2))
                writer.assign(path, (field, *more))
            if draw(st.booleans()) and "list" not in fields[name]:
                writer.note((*path, "list"))
                writer.write(f"[[ {writer.key(*path, 'list')} ]]")
                writer.assign((*path, "list"), ("x",))
    return writer


@pytest.mark.uncovered
@settings(max_examples=300)
@given(layouts())
def test_lines_of_keys(writer: Writer) -> None:
    """
    The line of a key is the one it is written in, however the file is laid out.
    """
    text = "\n".join(writer.lines)
    tomllib.loads(text)
    lines = lines_of(text)
    assert {path: lines[path] for path in writer.where} == writer.where


def test_lines_are_found_of_few_levels() -> None:
    """
    A dotted key of many parts does not take long: the first parts have a line.
    """
    many = ["a"] * 2_000
    lines = lines_of(f"x = 1\n{'.'.join(many)} = 1\n[b.{'.'.join(many)}]\nc = 1\n")
    assert lines["a", "a"] == 2
    assert lines["b", "a"] == 3
    assert max(map(len, lines)) <= DEEPEST


@pytest.mark.uncovered
def test_what_is_as_deep_as_can_be(tmp_path: Path) -> None:
    """
    However deep a value nests, it is one error, also where it can just be read.
    """
    for depth in range(1, 600):
        text = f"\nx = {'[' * depth}{']' * depth}\n"
        [(line, message)] = errors_of(tmp_path, "x.toml", text)
        assert message.startswith(("'x' is not known", "is not TOML: "))
        # Where it can only just be read, its line is not found.
        assert line == 2 or (line == 1 and message.startswith("'x'"))


# -- crontabs -------------------------------------------------------------------------


def test_a_crontab(tmp_path: Path) -> None:
    """
    A line of a crontab names a work, in place of a command, and its param.
    """
    text = """\
# Not a schedule.
  # Nor this.

0 3 * * * back_up
@daily\treport   {"to": "all", "parts": [1]}
CRON_TZ=Europe/Berlin
*/5 9-17 * * MON-FRI poll {}
  @every 1h30m poll id=slowly {"a": "id=b # c"}
CRON_TZ = "Asia/Tokyo"
@Hourly 刻限 id=時
"""
    assert load(tmp_path, "crontab", text) == (
        schedule("back_up", Cron("0 3 * * *"), "back_up"),
        schedule("report", Cron("@daily"), "report", param={"to": "all", "parts": [1]}),
        schedule("poll", Cron("*/5 9-17 * * MON-FRI", "Europe/Berlin"), "poll"),
        schedule("slowly", Interval("1h30m"), "poll", param={"a": "id=b # c"}),
        schedule("時", Cron("@Hourly", "Asia/Tokyo"), "刻限"),
    )


WRONG_LINES = {
    "setting": ("PATH=/bin:/usr/bin", "PATH: no command is started here"),
    "mail": ('MAILTO = ""', "MAILTO: no command is started here that it could be set for"),
    "zone": ("CRON_TZ=Mars", "CRON_TZ: 'Mars' is not known here: give the name of a zone"),
    "no zone": ("CRON_TZ='", "CRON_TZ: '' is not known here"),
    "short": ("0 3 * * *", "'0 3 * * *' is too short: write minute, hour, day of month,"),
    "no work": ("@daily", "'@daily' is too short"),
    "no work after every": ("@every 1h", "'@every 1h' is too short"),
    "six fields": ("0 0 3 * * MON w", "schedule 'MON': param: must be a JSON object, the"),
    "six": ("0 0 3 * * * w", "'*' is where the name of a work belongs: a crontab has five"),
    "field": ("61 * * * * w", "schedule 'w': expression: the minute, '61', cannot be used"),
    "never": ("0 0 30 2 * w", "schedule 'w': expression: '0 0 30 2 *' never comes true"),
    "reboot": ("@reboot w", "schedule 'w': expression: '@reboot' is not known: there are"),
    "every": (
        "@every x w",
        "schedule 'w': every: must be seconds, a timedelta or text with units like",
    ),
    "comment": ("@daily w # x", "param: must be a JSON object, the last thing in the line"),
    "list": (
        "@daily w [1]",
        "param: must be a JSON object, the last thing in the line, not",
    ),
    "json": (
        '@daily w {"a": }',
        "param: must be a JSON object, the last thing in the line: Expecting value",
    ),
    "more": (
        "@daily w {} {}",
        "param: must be a JSON object, the last thing in the line: Extra data",
    ),
    "int": (
        f'@daily w {{"a": {"1" * 9999}}}',
        "the last thing in the line: Exceeds the limit",
    ),
    "deep": (
        f'@daily w {{"a": {"[" * 99999}',
        "param: must be a JSON object, the last thing in the line: ",
    ),
    "nan": ('@daily w {"a": NaN}', "schedule 'w': param.a: must be a finite number"),
    "surrogate": (r'@daily w {"a": "\ud800"}', "schedule 'w': param.a: has a lone surrog"),
    "no id": ("@daily w id=", "schedule '': id: must not be empty"),
    "long id": (f"@daily w id={'x' * 1001}", "id: must not be longer than 1000 bytes"),
    "nul": ("# \0", "has a NUL character: write the file as text, in UTF-8"),
    "command": ("0 3 * * * root /bin/x", "param: must be a JSON object, the last thing"),
}


@pytest.mark.parametrize(("line", "error"), WRONG_LINES.values(), ids=WRONG_LINES.keys())
def test_what_is_wrong_in_a_line(tmp_path: Path, line: str, error: str) -> None:
    """
    What cannot be used of a crontab is told with its line, and what to do.
    """
    text = f"@daily before\n{line}\n@daily behind\n"
    [(number, message)] = errors_of(tmp_path, "x.crontab", text)
    assert number == 2
    assert error in message
    assert message.isprintable()


def test_all_that_is_wrong_in_a_crontab(tmp_path: Path) -> None:
    """
    All that is wrong in a crontab is told at once, of one line, too.
    """
    found = errors_of(tmp_path, "cron.tab", 'A=1\n61 3 * * * w id= {"a"}\n@daily\n')
    assert [(line, message.split(":")[1].strip()) for line, message in found[1:-1]] == [
        (2, "expression"),
        (2, "param"),
        (2, "id"),
    ]
    assert [line for line, _ in found] == [1, 2, 2, 2, 3]


def test_an_id_is_given_once(tmp_path: Path) -> None:
    """
    Two lines of one id are an error that names both: their ids do not come from their
    places.
    """
    text = "@daily poll\n\n@hourly poll\n@yearly poll id=a\n@monthly b id=a\n"
    what = "give one of them an id of its own, as in"
    assert errors_of(tmp_path, "crontab", text) == [
        (3, f"schedule 'poll': another in line 1 has this id: {what} poll id=its-name"),
        (5, f"schedule 'a': another in line 4 has this id: {what} b id=its-name"),
    ]


LINES = ["@daily a", "@daily b", "@hourly b id=c", "# d", "", "@every 7s b id=d {}"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(LINES))
def test_ids_stay_as_lines_are_moved(folder: Path, lines: Sequence[str]) -> None:
    """
    A schedule of a crontab has the same id wherever its line is.
    """
    found = load(folder, "crontab", "\n".join(lines))
    ordered = load(folder, "crontab", "\n".join(LINES))
    assert sorted(found, key=lambda each: each.id) == [*ordered]


# -- files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.toml", "X.TOML"])
def test_tables_by_the_name_of_the_file(tmp_path: Path, name: str) -> None:
    """
    A file whose name ends in .toml, in whatever case, is TOML.
    """
    assert [each.id for each in load(tmp_path, name, HEAD)] == ["s"]


@pytest.mark.parametrize("text", ["", "\n", "# only\n", "\ufeff"], ids=ascii)
@pytest.mark.parametrize("name", ["x.toml", "crontab"])
def test_an_empty_file(tmp_path: Path, name: str, text: str) -> None:
    """
    A file in which nothing is written has no schedules.
    """
    assert load(tmp_path, name, text) == ()


@pytest.mark.parametrize("name", ["x.toml", "crontab"])
def test_files_of_windows(tmp_path: Path, name: str) -> None:
    """
    A byte order mark and line ends of Windows change nothing, nor the lines of errors.
    """
    good = EVERYTHING if name == "x.toml" else "@daily a\n@hourly b {}\n"
    windows = ("\ufeff" + good.replace("\n", "\r\n")).encode()
    assert load(tmp_path, name, windows) == load(tmp_path, name, good)
    [(line, _)] = errors_of(tmp_path, name, windows + b"x.y = 1\r\n")
    assert line == good.count("\n") + 1


@pytest.mark.parametrize("name", ["x.toml", "crontab"])
def test_what_is_not_text(tmp_path: Path, name: str) -> None:
    """
    Of a file that is not UTF-8 the line of the first wrong byte is told.
    """
    assert errors_of(tmp_path, name, b"# a\n\n# \xff\n") == [
        (3, "is not UTF-8: there is a byte 0xff")
    ]
    assert "NUL" in errors_of(tmp_path, "crontab", "@daily x".encode("utf-16-le"))[0][1]


@pytest.mark.parametrize("name", ["x.toml", "crontab"])
def test_a_file_that_is_too_large(tmp_path: Path, name: str) -> None:
    """
    A file of more than a million bytes is refused, whatever is in it.
    """
    assert load(tmp_path, name, "#" * LARGEST) == ()
    assert errors_of(tmp_path, name, "#" * 10 * LARGEST) == [
        (1, "the file is larger than 1000000 bytes: make several of it")
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """
    Who names a file that cannot be read is told so by an OSError.
    """
    with pytest.raises(FileNotFoundError):
        load_schedules(tmp_path / "nowhere.toml")
    with pytest.raises(OSError, match=re.escape(os.fspath(tmp_path))):
        load_schedules(tmp_path)


# -- whatever is in them --------------------------------------------------------------

PIECES = [
    *"[]{}=.,#\"'\n\r\\ \t\0\ufeff",
    '"""',
    "'''",
    "\r\n",
    "[schedules.a]\n",
    "[schedules",
    "[[schedules.a.param]]\n",
    *(f"\n{key} = " for key in ("work_id", "cron", "every", "anchor", "late", "param")),
    *("\ntrigger = ", "\nlate.", "jitter=", "schedules.b.", "1e400", "nan", "2030-01-01"),
    *(
        "9" * 30,
        '"@daily"',
        '"1h"',
        "{window=1}",
        "{either=[{every=1}]}",
        "true",
        "0001-01-01",
    ),
    *("@daily ", "@every 1s ", "0 3 * * * ", "w", " id=", "CRON_TZ=", '{"a": 1}', "\n@"),
    *("60", "L", "*/5", "5#2", "-", "99999999999999", "\x85", "\u2028", "\U0001f551"),
]
anything = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from(PIECES), max_size=25).map(lambda each: "".join(each).encode()),
)


def whatever(
    folder: Path, name: str, content: bytes
) -> tuple[tuple[Schedule, ...], tuple[tuple[int, str], ...]]:
    """Schedules, or errors; no other exception."""
    try:
        return load(folder, name, content), ()
    except InvalidSchedulesError as error:
        return (), error.errors


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=anything, name=st.sampled_from(["x.toml", "crontab"]))
def test_any_file_at_all(folder: Path, content: bytes, name: str) -> None:
    """
    Whatever a file has in it, there are schedules, or an error that lists what is wrong.
    """
    found, errors = whatever(folder, name, content)
    assert len({each.id for each in found}) == len(found)
    assert {line for line, _ in errors} <= {*range(1, content.count(b"\n") + 2)}
    assert all(message.isprintable() for _, message in errors)


words = st.sampled_from(
    [
        *(
            "cron",
            "every",
            "calendar_interval",
            "either",
            "both",
            "except",
            "at",
            "of",
            "tz",
        ),
        *("anchor", "dst", "days", "months", "start", "missing", "window", "run", "limit"),
        *("* * * * *", "1h", "UTC", "2030-01-01", "2030-01-01T00:00:00+00:00", "all", "-1"),
    ]
)
values = st.recursive(
    st.one_of(
        words,
        letters,
        st.integers(-(10**40), 10**40),
        st.floats(),
        st.booleans(),
        st.datetimes(),
        st.datetimes(timezones=st.just(UTC)),
        st.dates(),
        st.times(),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
arguments = st.sampled_from(
    [
        *("work_id", "cron", "tz", "dst", "every", "anchor", "trigger", "param", "meta"),
        *("priority", "deadline_after", "jitter", "late", "overlap", "after", "paused"),
        *("when", "pool"),
    ]
)


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        inner = (f"{json.dumps(k)} = {as_toml(v)}" for k, v in value.items())
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool | int | float):
        return str(value).lower()
    text: str = value.isoformat()
    return text


def table_of(said: dict[str, Any]) -> Iterator[str]:
    yield "[schedules.s]"
    for key, value in said.items():
        yield f"{key} = {as_toml(value)}"


@pytest.mark.uncovered
@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(arguments, values, min_size=1, max_size=4))
def test_any_table_at_all(folder: Path, said: dict[str, Any]) -> None:
    """
    Whatever is said of a schedule, it is taken, or each thing that is wrong is told in
    the line of its key.
    """
    lines = [*table_of(said)]
    where = {line.split(" = ")[0]: number for number, line in enumerate(lines, 1)}
    found, errors = whatever(folder, "x.toml", "\n".join(lines).encode())
    assert len(found) == (not errors)
    for line, message in errors:
        field = message.removeprefix("schedule 's': ").split(":")[0]
        assert line == where.get(re.split(r"\W", field)[0], 1), message


def test_a_string_of_many_lines_after_an_empty_key() -> None:
    """
    Quotes that follow each other closely are told apart, by every Python.
    """
    text = '["schedules".""]\n""="""\n[schedules.fake]\nx = 1 # "\n"""\nb = 1'
    assert lines_of(text) == {
        ("schedules",): 1,
        ("schedules", ""): 1,
        ("schedules", "", ""): 2,
        ("schedules", "", "b"): 6,
    }
