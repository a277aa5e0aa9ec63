"""What can be wrong with a database, beside a task."""

from __future__ import annotations

import attrs

from trio_gokugen._errors import RefusedError, RepositoryError, printable


@attrs.frozen
class NameTakenError(RepositoryError):
    """Another scheduler that is alive works on the database under this name.

    Give each a `name` of its own, or wait until the other has stopped. A name is free as
    soon as the process that had it has ended, in whatever way.
    """

    name: str

    def __str__(self) -> str:
        return (
            f"a scheduler named {self.name!r} is already at work on this database: give"
            " each a name of its own, or wait until that one has stopped"
        )


@attrs.frozen
class SchemaError(RepositoryError):
    """The database's tables are not those that this version works with.

    Nothing was changed.
    """

    found: str | None
    """The revision of the tables, if there are any."""

    reason: str

    def __str__(self) -> str:
        return printable(self.reason)


class NotADatabaseError(RepositoryError):
    """The file is damaged, or is no database at all. It was left as it is."""


@attrs.frozen
class UnknownScheduleError(RefusedError):
    """A stored schedule has something that this program does not know.

    A kind of trigger of a newer version, or a time zone that this machine does not have.
    Its occurrences are left to programs that know it; to run them here, upgrade this one,
    or install what is missing (of time zones, the package ``tzdata``). It can be removed.
    """

    schedule_id: str
    reason: str

    def __str__(self) -> str:
        return printable(
            f"the stored schedule {self.schedule_id!r} is not known to this program,"
            f" {self.reason}: upgrade it, or install what is missing, or remove the"
            " schedule, and add it again"
        )


@attrs.frozen
class DamagedScheduleError(RefusedError):
    """A stored schedule cannot be read. Remove it, and add it again."""

    schedule_id: str
    reason: str

    def __str__(self) -> str:
        return printable(
            f"the stored schedule {self.schedule_id!r} cannot be read, {self.reason}:"
            " remove it, and add it again"
        )
