import functools
import inspect
import math
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import same_everywhere

from trio_gokugen import InvalidTaskError, WorkExistsError, WorkNotFoundError, WorkRegistry
from trio_gokugen import abc as seams

Function = Callable[..., Any]


async def greet(name: str, *, loud: bool = False) -> None:
    pass


def count(upto: int) -> int:
    return upto


class Greeter:
    """Callable in every way that a class offers."""

    async def __call__(self, name: str) -> None:
        pass

    async def method(self, name: str) -> None:
        pass

    def plain(self, name: str) -> None:
        pass

    @classmethod
    async def of_class(cls, name: str) -> None:
        pass

    @staticmethod
    async def static(name: str) -> None:
        pass


class Plain:
    def __call__(self, name: str) -> None:
        pass


class Generating:
    def __call__(self) -> Generator[int]:
        yield 1


class AsyncGenerating:
    async def __call__(self) -> AsyncGenerator[int]:
        yield 1


def generating() -> Generator[int]:
    yield 1


async def async_generating() -> AsyncGenerator[int]:
    yield 1


def decorated(function: Callable[[str], Coroutine[Any, Any, None]]) -> Function:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> None:
        await function(*args, **kwargs)

    return wrapper


# -- registering --------------------------------------------------------------------


def test_a_function_is_registered_by_its_name() -> None:
    """
    A bare decorator registers the function by its own name, and gives it back.
    """
    works = WorkRegistry()
    assert works.register(greet) is greet
    work = works.get("greet")
    assert (work.work_id, work.function, work.timeout) == ("greet", greet, None)
    assert works.work_ids == {"greet"}


def test_a_function_is_registered_by_a_given_name() -> None:
    """
    A decorator with a name registers the function by it, and gives the function back.
    """
    works = WorkRegistry()
    assert works.register("hello", timeout=60)(greet) is greet
    work = works.get("hello")
    assert (work.work_id, work.function, work.timeout) == ("hello", greet, 60)
    assert works.work_ids == {"hello"}


def test_a_decorator_may_have_no_name() -> None:
    """
    A decorator called without a name, or with a timeout alone, takes the function's name.
    """
    works = WorkRegistry()
    assert works.register()(greet) is greet
    assert works.register(timeout=timedelta(minutes=1.5))(count) is count
    assert works.get("greet").timeout is None
    assert works.get("count").timeout == 90
    assert works.work_ids == {"greet", "count"}


def test_a_function_is_registered_by_a_call() -> None:
    """
    A call with a name and a function registers it, and gives the function back.
    """
    works = WorkRegistry()
    assert works.register("hello", greet, timeout=2.5) is greet
    assert works.get("hello").function is greet
    assert works.get("hello").timeout == 2.5


def test_a_function_may_have_many_names() -> None:
    """
    A function can be registered by several names, each with a timeout of its own.
    """
    works = WorkRegistry()
    works.register(greet)
    works.register("slow", greet, timeout=99)
    assert works.get("greet").timeout is None
    assert works.get("slow").timeout == 99


def test_a_registry_fits_its_seam() -> None:
    """
    A `WorkRegistry` is what the scheduler expects of one.
    """
    works: seams.WorkRegistry = WorkRegistry()
    assert works.work_ids == frozenset()


def test_the_names_are_the_same_object_while_they_are_the_same() -> None:
    """
    `work_ids` is one object until a work is registered, and does not change in hand.
    """
    works = WorkRegistry()
    works.register(greet)
    before = works.work_ids
    assert works.work_ids is before
    with pytest.raises(WorkExistsError):
        works.register(greet)
    assert works.work_ids is before
    works.register(count)
    assert before == {"greet"}
    assert works.work_ids == {"greet", "count"}


def test_registries_share_nothing() -> None:
    """
    What is registered in one registry is unknown in another.
    """
    one, other = WorkRegistry(), WorkRegistry()
    one.register(greet)
    assert other.work_ids == frozenset()
    with pytest.raises(WorkNotFoundError):
        other.get("greet")


# -- what is refused ----------------------------------------------------------------


def test_a_name_is_taken_once() -> None:
    """
    A second work of a name is refused, however it is registered, and the first stays.
    """
    works = WorkRegistry()
    works.register(greet)
    for again in (
        lambda: works.register(greet),
        lambda: works.register("greet")(count),
        lambda: works.register("greet", count),
    ):
        with pytest.raises(WorkExistsError) as caught:
            again()
        assert caught.value.work_id == "greet"
    assert works.get("greet").function is greet


@pytest.mark.parametrize("work_id", ["greet", "", "Greet", "greet "], ids=repr)
def test_an_unknown_name_is_told(work_id: str) -> None:
    """
    Asking for a work that was not registered is an error that has its name.
    """
    works = WorkRegistry()
    works.register("other", greet)
    with pytest.raises(WorkNotFoundError) as caught:
        works.get(work_id)
    assert caught.value.work_id == work_id
    assert caught.value.index is None


@pytest.mark.parametrize("wrong", ["", "a\0b", "\ud800"], ids=repr)
def test_a_name_must_fit_a_task(wrong: str) -> None:
    """
    A name that no task could have is refused.
    """
    works = WorkRegistry()
    for register in (works.register(wrong), functools.partial(works.register, wrong)):
        with pytest.raises(InvalidTaskError) as caught:
            register(greet)
        assert caught.value.field == "work_id"
    assert works.work_ids == frozenset()


@pytest.mark.parametrize(
    "arguments",
    [(7,), ("name", 7), ("name", "greet"), ([],), (greet, greet), (7, greet)],
    ids=["number", "name and number", "names", "list", "functions", "number for a name"],
)
def test_what_is_no_function_is_refused(arguments: tuple[Any, ...]) -> None:
    """
    What cannot be called, or is no name, is refused, and nothing is registered.
    """
    works = WorkRegistry()
    with pytest.raises(TypeError, match=r"^(function|work_id): "):
        works.register(*arguments)
    assert works.work_ids == frozenset()


@pytest.mark.parametrize(
    "nameless",
    [lambda: None, functools.partial(greet, "trio"), Greeter()],
    ids=["lambda", "partial", "object"],
)
def test_what_has_no_name_must_be_given_one(nameless: Function) -> None:
    """
    A function without a name of its own is refused, unless it is given one.
    """
    works = WorkRegistry()
    for register in (works.register, works.register(), works.register(timeout=1)):
        with pytest.raises(TypeError, match=r"^work_id: .* has no name, so give it one$"):
            register(nameless)
    assert works.register("named", nameless) is nameless
    assert works.work_ids == {"named"}


@pytest.mark.parametrize(
    "function",
    [
        generating,
        async_generating,
        functools.partial(generating),
        functools.partial(functools.partial(async_generating)),
        Generating(),
        AsyncGenerating(),
        Generating().__call__,
        AsyncGenerating().__call__,
    ],
    ids=[
        "generator",
        "async generator",
        "partial",
        "partial of partial",
        "object",
        "async object",
        "method",
        "async method",
    ],
)
def test_a_generator_is_refused(function: Function) -> None:
    """
    A generator function, which when called runs nothing, is refused.
    """
    works = WorkRegistry()
    with pytest.raises(TypeError, match=r"is a generator, which is never run$"):
        works.register("work", function)
    assert works.work_ids == frozenset()


@pytest.mark.parametrize(
    ("timeout", "kind"),
    [
        (0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (timedelta(0), ValueError),
        (timedelta(days=-1), ValueError),
        (10**400, ValueError),
        (True, TypeError),
        ("60", TypeError),
        (1j, TypeError),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else str(each)[:9],
)
def test_a_timeout_is_a_positive_time(timeout: Any, kind: type[Exception]) -> None:
    """
    A timeout that is no positive, finite number of seconds is refused.
    """
    works = WorkRegistry()
    with pytest.raises(kind, match=r"^timeout: must be "):
        works.register("work", greet, timeout=timeout)
    assert works.work_ids == frozenset()


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        (1, 1.0),
        (0.25, 0.25),
        (timedelta(hours=1, microseconds=1), 3600.000001),
        (timedelta.max, timedelta.max.total_seconds()),
        (None, None),
    ],
    ids=str,
)
def test_a_timeout_is_kept_in_seconds(timeout: Any, seconds: float | None) -> None:
    """
    A timeout is kept as a float of seconds.
    """
    works = WorkRegistry()
    works.register("work", greet, timeout=timeout)
    kept = works.get("work").timeout
    assert kept == seconds
    assert type(kept) is type(seconds)


# -- where it runs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "in_thread"),
    [
        (greet, False),
        (count, True),
        (functools.partial(greet, loud=True), False),
        (functools.partial(functools.partial(greet), loud=True), False),
        (functools.partial(count), True),
        (Greeter(), False),
        (functools.partial(Greeter()), False),
        (Greeter().method, False),
        (functools.partial(Greeter().method), False),
        (Greeter().plain, True),
        (Greeter.of_class, False),
        (Greeter.static, False),
        (Greeter.__dict__["static"], False),
        (Plain(), True),
        (Plain, True),
        (Greeter, True),
        (decorated(Greeter().method), False),
        (print, True),
        (random.Random().seed, True),
        (lambda: None, True),
    ],
    ids=[
        "async",
        "plain",
        "partial",
        "partial of partial",
        "plain partial",
        "object",
        "partial of object",
        "method",
        "partial of method",
        "plain method",
        "class method",
        "static method",
        "static method before its class",
        "plain object",
        "plain class",
        "class",
        "decorated",
        "builtin",
        "builtin method",
        "lambda",
    ],
)
def test_only_plain_functions_run_in_threads(function: Function, in_thread: bool) -> None:
    """
    A function that is async in whatever way runs in the nursery, any other in a thread.
    """
    works = WorkRegistry()
    assert works.register("work", function) is function
    assert works.get("work").in_thread is in_thread


# -- the check of what it is called with ---------------------------------------------


def fits(works: WorkRegistry, work_id: str, param: dict[str, Any]) -> bool:
    """Whether the check lets it pass; it must name the field if not."""
    try:
        works.get(work_id).check_param(param)
    except InvalidTaskError as error:
        refused = error.field
    else:
        return True
    assert refused == "param"
    return False


def can_be_called(function: Function, param: dict[str, Any]) -> bool:
    try:
        function(**param)
    except TypeError:
        return False
    return True


def test_what_does_not_fit_is_named() -> None:
    """
    The error of the check lists what is missing, and what is too much.
    """
    works = WorkRegistry()
    works.register(greet)

    def refused(param: dict[str, Any]) -> str:
        with pytest.raises(InvalidTaskError) as caught:
            works.get("greet").check_param(param)
        return str(caught.value)

    assert refused({}) == "param: lacks 'name'"
    assert refused({"Name": "trio"}) == (
        "param: lacks 'name', and has 'Name', which the work does not take"
    )
    assert refused({"name": "trio", "x": 1, "a b": 2}) == (
        "param: has 'a b', 'x', which the work does not take"
    )
    works.get("greet").check_param({"name": 7, "loud": None})


ALPHABET = "abcdef"


@st.composite
def functions(draw: st.DrawFn) -> Function:
    """A function with parameters of all kinds, with and without defaults."""
    names = draw(st.lists(st.sampled_from(ALPHABET), unique=True, max_size=5))
    cuts = sorted(draw(st.tuples(*[st.integers(0, len(names))] * 2)))
    optional_from = draw(st.integers(0, len(names)))
    parts: list[str] = []
    for index, name in enumerate(names[: cuts[1]]):
        if index == cuts[0] > 0:
            parts.append("/")
        parts.append(f"{name}=0" if index >= optional_from else name)
    if cuts[0] == cuts[1] > 0:
        parts.append("/")
    rest = names[cuts[1] :]
    if draw(st.booleans()):
        parts.append("*args")
    elif rest:
        parts.append("*")
    parts += [f"{name}=0" if draw(st.booleans()) else name for name in rest]
    if draw(st.booleans()):
        parts.append("**kwargs")
    source = f"def function({', '.join(parts)}): pass"
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102 - made above
    function: Function = namespace["function"]
    return function


params = st.dictionaries(st.sampled_from([*ALPHABET, "args", "a b"]), st.none())


def positional_only(function: Function) -> dict[str, inspect.Parameter]:
    return {
        name: each
        for name, each in inspect.signature(function).parameters.items()
        if each.kind is each.POSITIONAL_ONLY
    }


@settings(max_examples=200)
@given(functions(), st.lists(params, min_size=1, max_size=8))
def test_the_check_agrees_with_the_call(
    function: Function, params: list[dict[str, Any]]
) -> None:
    """
    Of any function, the check lets pass exactly what it can be called with by keywords;
    one that cannot be called by keywords at all is refused.
    """
    works = WorkRegistry()
    if any(each.default is each.empty for each in positional_only(function).values()):
        with pytest.raises(TypeError, match="cannot be called by keywords alone"):
            works.register(function)
        return
    works.register(function)
    for param in params:
        assert fits(works, "function", param) is can_be_called(function, param)


@settings(max_examples=200)
@given(
    functions(),
    st.integers(0, 3),
    st.dictionaries(st.sampled_from(ALPHABET), st.none(), max_size=2),
    st.lists(params, min_size=1, max_size=8),
)
def test_the_check_of_a_partial_agrees_with_the_call(
    function: Function,
    positional: int,
    keywords: dict[str, Any],
    params: list[dict[str, Any]],
) -> None:
    """
    Of any partial function, the check lets pass exactly what it can be called with by
    keywords; one that cannot be called so at all may be refused.
    """
    # What the signature of a partial function does not tell: that **kwargs may get what
    # is named like a positional-only parameter, and not what is named like a bound one.
    assume(keywords.keys().isdisjoint(positional_only(function)))
    bound = list(inspect.signature(function).parameters)[:positional]
    params = [{k: v for k, v in each.items() if k not in bound} for each in params]
    partial = functools.partial(function, *range(positional), **keywords)
    works = WorkRegistry()
    try:
        works.register("work", partial)
    except TypeError:
        assert not any(can_be_called(partial, param) for param in params)
        return
    for param in params:
        assert fits(works, "work", param) is can_be_called(partial, param)


def everything(a: int, /, b: int, *args: int, c: int, d: int = 0, **kwargs: int) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "param", "fitting"),
    [
        (Greeter(), {"name": "trio"}, True),
        (Greeter(), {"self": 1, "name": "trio"}, False),
        (Greeter().method, {"name": "trio"}, True),
        (Greeter().method, {}, False),
        (Greeter.of_class, {"name": "trio"}, True),
        (Greeter.of_class, {"cls": 1, "name": "trio"}, False),
        (decorated(Greeter().method), {"name": "trio"}, True),
        (decorated(Greeter().method), {"x": 1}, False),
        (Greeter, {}, True),
        (Greeter, {"name": "trio"}, False),
        (print, {"sep": ""}, True),
        (print, {"separator": ""}, False),
        (dict, {"anything": 1}, True),
        (functools.partial(everything, 1), {"b": 1, "c": 2, "x": 3}, True),
        (functools.partial(everything, 1), {"b": 1}, False),
        (functools.partial(everything, 1, 2, 3), {"c": 1}, True),
    ],
    ids=same_everywhere,
)
def test_the_check_of_what_is_no_plain_function(
    function: Function, param: dict[str, Any], fitting: bool
) -> None:
    """
    Methods, objects, classes, builtins and decorated functions are checked by the
    parameters that a caller sees; what does not tell them is not checked.
    """
    works = WorkRegistry()
    works.register("work", function)
    assert fits(works, "work", param) is fitting


@pytest.mark.parametrize("process", [False, True])
def test_what_takes_no_keywords_is_refused(process: bool) -> None:
    """
    What no `param` can be given to is refused in a thread as in a process, and told why.
    """
    works = WorkRegistry()
    with pytest.raises(TypeError) as caught:
        works.register("work", divmod, process=process)
    assert str(caught.value) == (
        "function: <built-in function divmod> cannot be called by keywords alone, as a work"
        " is: it takes 'x', 'y' by position only. Write a function around it"
    )
    assert works.work_ids == frozenset()


def test_a_partial_that_can_never_be_called_is_refused() -> None:
    """
    A partial function with more arguments than the function takes is refused.
    """
    works, make = WorkRegistry(), cast("Callable[..., Function]", functools.partial)
    with pytest.raises(TypeError, match=r"^function: "):
        works.register("work", make(count, 1, 2))
