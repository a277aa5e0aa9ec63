"""When a task is tried again whose run has failed. Knows nothing of Trio.

What a run has ended with says what is to become of its task: an error that its `Retry`
names, that there is to be another attempt; and what a work raises on purpose, by
`Retry.after`, `Snooze` and `Discard`, says it outright.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, TypeGuard, cast

import attrs

from ._describe import message_of
from ._errors import ForeignError, InvalidTaskError, shown
from ._json import JSON, int64, name
from ._lengths import LONGEST, TICK, length
from ._lengths import jitter as as_jitter

# -- what a work raises on purpose ----------------------------------------------------


class RetryAfter(Exception):  # noqa: N818 (it is no error, but a wish)
    """Have the task run again after some time: see `Retry.after`."""

    def __init__(self, after: timedelta) -> None:
        super().__init__(after)
        self.wait: timedelta = after


class Snooze(Exception):  # noqa: N818 (it is no error, but a wish)
    """Raised by a work: have the task run later. Nothing has failed.

    It counts as an `attempt`, but against no limit: for as often as the work likes.
    """

    def __init__(
        self, after: float | timedelta | None = None, at: datetime | None = None
    ) -> None:
        """Sleep on.

        Args:
          after: Seconds from now.
          at: The moment, instead: aware.

        Raises:
          InvalidTaskError: names the argument that cannot be used.
        """
        if (after is None) is (at is None):
            raise InvalidTaskError("after", "must be given, or else the moment, at")
        super().__init__(after, at)
        self.wait: timedelta | None = None if after is None else length(after, "after")
        self.at: datetime | None = None if at is None else _aware(at)

    def __str__(self) -> str:
        return f"for {self.wait}" if self.at is None else f"until {self.at.isoformat()}"


class Discard(Exception):  # noqa: N818 (it is no error, but a wish)
    """Raised by a work: the task has failed, for this reason, and is not to run again."""


def _aware(moment: datetime) -> datetime:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidTaskError("at", f"must be an aware datetime, not {shown(moment)}")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise InvalidTaskError(
            "at", "leaves the years 1 to 9999 when turned to UTC"
        ) from None


# -- how long to wait -----------------------------------------------------------------


@attrs.frozen
class Fixed:
    """Waits as long each time: see `fixed`."""

    wait: timedelta

    def __call__(self, _failed: int) -> timedelta:
        return self.wait

    def to_data(self) -> dict[str, JSON]:
        return {"kind": "fixed", "seconds": self.wait.total_seconds()}


@attrs.frozen
class Exponential:
    """Waits longer each time: see `exponential`."""

    first: timedelta
    factor: float
    longest: timedelta

    def __call__(self, failed: int) -> timedelta:
        if not self.first:
            return self.first
        try:
            return min(self.first * self.factor ** (failed - 1), self.longest)
        except OverflowError:
            return self.longest

    def to_data(self) -> dict[str, JSON]:
        return {
            "kind": "exponential",
            "first": self.first.total_seconds(),
            "factor": self.factor,
            "longest": self.longest.total_seconds(),
        }


def fixed(seconds: float | timedelta) -> Fixed:
    """Wait as long before each attempt."""
    return Fixed(length(seconds, "seconds"))


def exponential(
    first: float | timedelta = 1.0,
    *,
    factor: float = 2.0,
    longest: float | timedelta = 3600.0,
) -> Exponential:
    """Wait longer before each attempt.

    Args:
      first: Seconds before the second attempt.
      factor: So many times as long before each that follows: at least 1.
      longest: But never longer than these seconds.
    """
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor >= 1:
        raise InvalidTaskError("factor", f"must be a number from 1 on, not {shown(factor)}")
    try:
        factor = float(factor)
    except OverflowError:
        factor = float("inf")
    return Exponential(
        length(first, "first"), min(factor, _LARGEST_FACTOR), length(longest, "longest")
    )


_LARGEST_FACTOR = 1e300

Wait: TypeAlias = Callable[[int], float | timedelta]
"""Seconds to wait, by how many attempts have failed so far."""

Decide: TypeAlias = Callable[[BaseException], bool]


def _waiting(value: object) -> Wait:
    if isinstance(value, type) or not callable(value):
        raise InvalidTaskError(
            "wait",
            f"must be exponential(...), fixed(...) or a function of how many attempts"
            f" have failed, not {shown(value)}",
        )
    return cast("Wait", value)


def _attempts(value: int | None) -> int | None:
    if value is not None and int64(value, "max_attempts") < 1:
        raise InvalidTaskError("max_attempts", f"must be at least 1, not {value}")
    return value


def _kinds(value: Any) -> tuple[str, ...] | Decide:
    """Classes of errors by their names, so that they can be stored."""
    if callable(value) and not isinstance(value, type):
        return cast("Decide", value)
    several = isinstance(value, tuple | list)
    kinds = cast("Sequence[object]", value if several else (value,))
    if not kinds:
        raise InvalidTaskError("retry_on", "must name some class of exceptions")
    return tuple(_named(each) for each in kinds)


def _named(kind: object) -> str:
    if isinstance(kind, str) and "." in kind:
        return name(kind, "retry_on")
    if _is_of_errors(kind):
        return _class_name(kind)
    raise InvalidTaskError(
        "retry_on", f"must be classes of exceptions, or a function, not {shown(kind)}"
    )


def _is_of_errors(kind: object) -> TypeGuard[type[BaseException]]:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@attrs.frozen
class Retry:
    """Whether a task runs again when its work has failed, and when.

    An attempt that a shutdown or a crash has cut short is not counted, nor one that was
    snoozed. A task that has passed its deadline, or would by then, is not tried again.

    Raises:
      InvalidTaskError: names the argument that cannot be used.
    """

    max_attempts: int | None = attrs.field(default=5, converter=_attempts)
    """How often it may fail, the first time included; `None` for as often as it likes."""

    wait: Wait = attrs.field(factory=exponential, converter=_waiting, kw_only=True)
    """How long to wait: `exponential`, `fixed`, or a function.

    A function is called with how many attempts have failed, 1 at first, and returns
    seconds. It must return the same each time.
    """

    jitter: timedelta = attrs.field(default=timedelta(0), converter=as_jitter, kw_only=True)
    """Each wait is longer by a part of this, the same part for the same attempt.

    Tasks that have failed together do not all come back together then. Or in seconds.
    """

    retry_on: tuple[str, ...] | Decide = attrs.field(
        default=cast("Any", Exception), converter=_kinds, kw_only=True
    )
    """Which errors are worth another attempt: a class, several, or a function of one.

    Kept as the names of these classes. A group of exceptions is worth it if all in it are.
    """

    @staticmethod
    def after(seconds: float | timedelta) -> RetryAfter:
        """To be raised by a work: it has failed, and is to be tried again after this time.

        Counted as a failed attempt. If the work and the task have no `Retry`, that may
        happen as often as the work likes.
        """
        return RetryAfter(length(seconds, "seconds"))

    def wants(self, error: BaseException) -> bool:
        """Whether this error is worth another attempt."""
        names = self._names
        if names is None:
            return bool(cast("Decide", self.retry_on)(error))
        return _is_one(error, names)

    @property
    def _names(self) -> tuple[str, ...] | None:
        kinds: object = self.retry_on
        return cast("tuple[str, ...]", kinds) if isinstance(kinds, tuple) else None

    def delay(self, task_id: str, failed: int) -> timedelta:
        """How long the task waits before its next attempt.

        Raises:
          InvalidTaskError: the function that says it returned what is no length of time.
        """
        wait = length(self.wait(failed), "wait")
        digest = hashlib.blake2b(f"{task_id} {failed}".encode(), digest_size=8).digest()
        part = int.from_bytes(digest, "big") * (self.jitter // TICK) // 2**64
        return min(wait + part * TICK, LONGEST)

    def to_data(self) -> dict[str, JSON]:
        """It as JSON values.

        Raises:
          InvalidTaskError: it has a function of somebody's own, which cannot be stored.
        """
        if not isinstance(self.wait, Fixed | Exponential):
            raise InvalidTaskError("retry", _UNSTORABLE.format("wait"))
        names = self._names
        if names is None:
            raise InvalidTaskError("retry", _UNSTORABLE.format("retry_on"))
        return {
            "max_attempts": self.max_attempts,
            "wait": self.wait.to_data(),
            "jitter": self.jitter.total_seconds(),
            "retry_on": list(names),
        }


def _is_one(error: BaseException, names: tuple[str, ...]) -> bool:
    """Whether an error is of one of these classes; of a group, whether all in it are."""
    if any(_class_name(each) in names for each in type(error).__mro__):
        return True
    if isinstance(error, ForeignError):
        return any(each in names for each in error.kinds)
    if not isinstance(error, BaseExceptionGroup):
        return False
    group = cast("BaseExceptionGroup[BaseException]", error)
    return all(_is_one(each, names) for each in group.exceptions)


_UNSTORABLE = (
    "has a function, {}, which cannot be stored with a task: register the work with it"
)


def retry_from_data(data: Mapping[str, Any]) -> Retry:
    """What `Retry.to_data` gave, or an `InvalidTaskError`."""
    try:
        wait, kinds = dict(data["wait"]), data["retry_on"]
        if not isinstance(kinds, list):
            raise TypeError("retry_on must be a list")  # noqa: TRY301 (told below)
        make = _WAITS[wait.pop("kind")]
        return Retry(
            data["max_attempts"],
            wait=make(**wait),
            jitter=data["jitter"],
            retry_on=tuple(cast("Sequence[Any]", kinds)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidTaskError("retry", f"cannot be read: {shown(error)}") from None


_WAITS: dict[str, Callable[..., Wait]] = {"fixed": fixed, "exponential": exponential}


def wish(error: BaseException) -> RetryAfter | Snooze | Discard | None:
    """What a work has said on purpose, maybe from within nurseries."""
    for each in _alone(error):
        if isinstance(each, RetryAfter | Snooze | Discard):
            return each
    return None


def bare(wished: RetryAfter | Snooze | Discard) -> RetryAfter | Snooze | Discard:
    """The same wish, without whatever else was put on the exception; of bounded size."""
    if isinstance(wished, RetryAfter):
        return RetryAfter(wished.wait)
    if isinstance(wished, Snooze):
        return Snooze(wished.wait, wished.at)
    return Discard(message_of(wished))


def _alone(error: BaseException) -> Iterator[BaseException]:
    """The error and, while it is a group of one, what is in it."""
    yield error
    while isinstance(error, BaseExceptionGroup):
        inside = cast("Sequence[BaseException]", error.exceptions)
        if len(inside) > 1:
            return
        error = inside[0]
        yield error
