"""Tasks in a database: one SQLite file with no server, or PostgreSQL.

Needs the extra ``sql``, and for PostgreSQL ``postgresql``.
"""

from importlib.util import find_spec

if find_spec("sqlalchemy") is None:
    raise ModuleNotFoundError(
        'trio_gokugen.sql needs SQLAlchemy: pip install "trio_gokugen[sql]"'
    )

from ._core import SQLCore
from ._errors import (
    DamagedScheduleError,
    NameTakenError,
    NotADatabaseError,
    SchemaError,
    UnknownScheduleError,
)
from ._migrate import migrate
from ._open import open_sql_repository
from ._repository import SQLRepository
from ._schema import ScheduleRow, TaskRow

__all__ = [
    "DamagedScheduleError",
    "NameTakenError",
    "NotADatabaseError",
    "SQLCore",
    "SQLRepository",
    "ScheduleRow",
    "SchemaError",
    "TaskRow",
    "UnknownScheduleError",
    "migrate",
    "open_sql_repository",
]
