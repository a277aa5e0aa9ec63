"""What helps to test programs that use this library, and implementations of its parts."""

from ._check_dispatcher import (
    DISPATCHER_CHECKS,
    SAME_PROCESS_CHECKS,
    STOPPING_CHECKS,
    check_dispatcher,
)
from ._check_repository import REPOSITORY_CHECKS, check_repository
from ._faults import Call, Fault
from ._faulty_repository import FaultyRepository
from ._seeded_order import seeded_order
from ._works import conformance_works

__all__ = [
    "DISPATCHER_CHECKS",
    "REPOSITORY_CHECKS",
    "SAME_PROCESS_CHECKS",
    "STOPPING_CHECKS",
    "Call",
    "Fault",
    "FaultyRepository",
    "check_dispatcher",
    "check_repository",
    "conformance_works",
    "seeded_order",
]
