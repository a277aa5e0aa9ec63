"""What tasks are made of, ordinary and odd, for hypothesis; and when it is equal."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypeAlias, TypeGuard

from hypothesis import strategies as st

from trio_gokugen import FailedAttempt, Progress, Retry, Task, TaskState, exponential, fixed

# Without the recursion of the library's own type, which strategies cannot follow.
Json: TypeAlias = Any

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
names = texts.filter(bool)
int64s = st.integers(-(2**63), 2**63 - 1)
numbers = int64s | st.floats(allow_nan=False, allow_infinity=False)
leaves: st.SearchStrategy[Json] = st.none() | st.booleans() | numbers | texts
json_values: st.SearchStrategy[Json] = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
json_objects: st.SearchStrategy[dict[str, Json]] = st.dictionaries(
    texts, json_values, max_size=4
)

offsets = st.timedeltas(
    timedelta(hours=-24) + timedelta(microseconds=1),
    timedelta(hours=24) - timedelta(microseconds=1),
).map(timezone)
"""Up to a day either way, to the microsecond."""

zones = offsets | st.timezones() | st.just(UTC)
moments = st.datetimes(timezones=st.just(UTC))
zoned_moments = st.datetimes(timezones=zones, allow_imaginary=True)
"""Every moment that can be written, whether or not UTC can tell it."""


lengths = st.timedeltas(timedelta(0), timedelta(days=36_525))
retries = st.builds(
    Retry,
    st.none() | st.integers(1, 2**63 - 1),
    wait=st.builds(fixed, lengths)
    | st.builds(exponential, lengths, factor=st.floats(1, 1e9), longest=lengths),
    jitter=lengths,
    retry_on=st.sampled_from([Exception, OSError, (ValueError, KeyError)]),
)
failed_attempts = st.builds(
    FailedAttempt, attempt=st.integers(0, 2**63 - 1), at=moments, err=texts
)
progresses = st.builds(
    Progress, fraction=st.floats(0, 1), note=st.none() | texts, at=moments
)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    """Any task at all, whatever its fields say together."""
    scheduled_at = draw(moments)
    later: st.SearchStrategy[datetime | None] = st.none()
    if scheduled_at < datetime.max.replace(tzinfo=UTC):
        later |= st.datetimes(
            scheduled_at.replace(tzinfo=None) + timedelta(microseconds=1),
            timezones=st.just(UTC),
        )
    return Task(
        id=draw(names),
        work_id=draw(names),
        param=draw(json_objects),
        meta=draw(json_objects),
        priority=draw(int64s),
        state=draw(st.sampled_from(TaskState)),
        err=draw(st.none() | texts),
        attempt=draw(st.integers(0, 2**63 - 1)),
        interruptions=draw(st.integers(0, 2**63 - 1)),
        scheduled_at=scheduled_at,
        created_at=draw(moments),
        deadline=draw(later),
        cancelled_at=draw(st.none() | moments),
        dispatched_at=draw(st.none() | moments),
        done_at=draw(st.none() | moments),
        key=draw(st.none() | names),
        retry=draw(st.none() | retries),
        retries=draw(st.integers(0, 2**63 - 1)),
        errors=tuple(draw(st.lists(failed_attempts, max_size=3))),
        result=draw(st.none() | json_values.filter(bool)),
        progress=draw(st.none() | progresses),
        when=draw(st.none() | names),
        pool=draw(st.none() | names),
    )


def is_object(value: Json) -> TypeGuard[dict[str, Json]]:
    return isinstance(value, dict)


def is_array(value: Json) -> TypeGuard[list[Json]]:
    return isinstance(value, list)


def tagged(value: Json) -> Json:
    """The value so that Python's equality tells apart what JSON tells apart."""
    if is_object(value):
        return {key: tagged(item) for key, item in value.items()}
    if is_array(value):
        return [tagged(item) for item in value]
    return ("bool", value) if isinstance(value, bool) else value


def exact(value: Json) -> Json:
    """The value so that Python's equality tells apart even 1 and 1.0, 0.0 and -0.0."""
    if is_object(value):
        return [(key, exact(item)) for key, item in value.items()]
    if is_array(value):
        return [exact(item) for item in value]
    return type(value), repr(value)
