"""Runs the code blocks of the README and the docs, and the docstrings' examples.

All of it runs on virtual time: a `trio.run` in a block gets a mock clock that jumps.
A block with a bare `await` is the inside of a program: it is run within
`async with open_scheduler(works) as scheduler`, with the `works` of its page, if it has
any. Files that a block writes are gone after it.
"""

import ast
import functools
import gc
import inspect
import sys
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType
from typing import Any
from unittest import mock

import trio
from hypothesis import HealthCheck, settings
from sybil import Example, Sybil
from sybil.document import PythonDocStringDocument
from sybil.evaluators.python import pad
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.rest import DocTestParser
from trio.testing import MockClock

from trio_gokugen import WorkRegistry, open_scheduler

# How long an example takes says more of the machine than of what is tested.
settings.register_profile(
    "unhurried",
    settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unhurried")

sys.path.insert(0, str(Path(__file__).parent / "tests"))
pytest_plugins = ["databases", "parallel"]


def pytest_collection_finish() -> None:
    # What was imported stays: the tests that look for what is left behind need not go
    # through it, time and again.
    gc.collect()
    gc.freeze()


def run_block(example: Example) -> None:
    # Blank lines in front make the lines of a traceback those of the page.
    source = pad(example.parsed, example.line + example.parsed.line_offset)
    code = compile(
        source,
        example.path,
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    clock = MockClock(autojump_threshold=0)
    run_on_virtual_time = functools.partial(trio.run, clock=clock)
    with (
        TemporaryDirectory() as directory,
        chdir(directory),
        mock.patch("trio.run", run_on_virtual_time),
    ):
        if code.co_flags & inspect.CO_COROUTINE:
            trio.run(run_inside, code, example.namespace)
        else:
            exec(code, example.namespace)  # noqa: S102 - our own pages


async def run_inside(code: CodeType, namespace: dict[str, Any]) -> None:
    works = namespace.get("works", WorkRegistry())
    async with open_scheduler(works) as scheduler:
        namespace["scheduler"] = scheduler
        await eval(code, namespace)  # noqa: S307 - our own pages


# In a pattern, the star of a directory stands for one level.
pages = Sybil(
    parsers=[CodeBlockParser("python", run_block)],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
)
docstrings = Sybil(
    parsers=[DocTestParser()],
    path="trio_gokugen",
    pattern="*.py",
    document_types={".py": PythonDocStringDocument},
)

pytest_collect_file = (pages + docstrings).pytest()
