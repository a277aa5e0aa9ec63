"""Names to functions. A task names its work, so it can be stored and sent anywhere."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, TypeVar, overload

from ._callables import address, called, check_address, check_async, is_async
from ._conditions import Condition
from ._errors import (
    ConditionExistsError,
    ConditionNotFoundError,
    quoted,
    shown,
    wrong_names,
)
from ._json import name
from ._registered_works import RegisteredWorks
from ._retry import Retry
from .abc import Work

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=Condition)


class WorkRegistry(RegisteredWorks):
    """The works of a program, by name.

    Async functions run in the scheduler's nursery, other functions in a thread, or in a
    process. Works registered while a scheduler runs can be used at once; stored tasks that
    waited for one are noticed the next time the scheduler looks for due tasks.

    Registries are joined by ``|``, as in ``works | commands``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conditions: dict[str, Condition] = {}

    @overload
    def register(self, work_id: F, /) -> F: ...
    @overload
    def register(
        self,
        work_id: str | None = None,
        /,
        *,
        timeout: float | timedelta | None = None,
        at_most_once: bool = False,
        retry: Retry | None = None,
        retain: bool = False,
        process: bool = False,
    ) -> Callable[[F], F]: ...
    @overload
    def register(
        self,
        work_id: str,
        function: F,
        /,
        *,
        timeout: float | timedelta | None = None,
        at_most_once: bool = False,
        retry: Retry | None = None,
        retain: bool = False,
        process: bool = False,
    ) -> F: ...

    def register(
        self,
        work_id: str | Callable[..., Any] | None = None,
        function: Callable[..., Any] | None = None,
        /,
        *,
        timeout: float | timedelta | None = None,
        at_most_once: bool = False,
        retry: Retry | None = None,
        retain: bool = False,
        process: bool = False,
    ) -> Any:
        """Register a function as a work.

        A decorator, with or without arguments; or call it with a name and a function.

        Args:
          work_id: The name; the function's own by default.
          function: What to call: async, or a plain function, which gets a thread. A few
            that are written in C do not tell how they can be called, `time.sleep` before
            Python 3.13: if that is not by keywords, their tasks fail.
          timeout: Seconds that one attempt may take; then it is cancelled, and the task
            fails. No limit by default.
          at_most_once: What becomes of a task whose run is lost, in a crash or at a
            shutdown that did not wait for it: by default it runs again, and with this it
            fails.
          retry: Whether a task runs again if the work has failed, unless the task has a
            `Retry` of its own. It does not, by default.
          retain: Keep what the work returns as the `result` of its task: any JSON value,
            of at most 64 KiB. The task fails if it cannot be kept.
          process: Run a plain function in a process rather than in a thread, so that it
            has a processor of its own, and is killed at once when it is cancelled or past
            its deadline. It must be found there by its module and name, and shares
            nothing with the program: it gets its `param`, and what it returns comes back
            as JSON, if it can, what it raises if that was made with plain values. A
            script must call `trio.run` under ``if __name__ == "__main__":``. Needs the
            extra ``process``.

        Returns:
          The function as it was.

        Raises:
          ModuleNotFoundError: with `process`, if the extra is missing.
          WorkExistsError: if the name is taken.
          TypeError: for a value of the wrong type, for what is not a function, cannot be
            called by keywords alone, or has no name of its own and was given none. With
            `process` for an async function, and for what another process does not find.
          ValueError: for a timeout that is not a positive number of seconds.
        """
        if work_id is not None and not isinstance(work_id, str):
            if function is not None:
                raise TypeError("work_id: must be a string when a function follows it")
            work_id, function = None, work_id
        bounds = _seconds(timeout)
        _check_kind(at_most_once, bool, "at_most_once", "a bool")
        _check_kind(retain, bool, "retain", "a bool")
        _check_kind(process, bool, "process", "a bool")
        if process:
            _check_extra()
        if retry is not None:
            _check_kind(retry, Retry, "retry", "a Retry")

        def decorate(decorated: F) -> F:
            return self._register(
                work_id,
                decorated,
                timeout=bounds,
                at_most_once=at_most_once,
                retry=retry,
                retain=retain,
                in_process=process,
            )

        if function is None:
            return decorate
        if process and callable(function) and not is_async(function):
            # Not what is decorated: that gets its place only when it is returned.
            check_address(function)
        return decorate(function)

    @overload
    def condition(self, name: C, /) -> C: ...
    @overload
    def condition(self, name: str | None = None, /) -> Callable[[C], C]: ...
    @overload
    def condition(self, name: str, function: C, /) -> C: ...

    def condition(
        self, name: str | Condition | None = None, function: Condition | None = None, /
    ) -> Any:
        """Register an async function that says whether an occurrence of a schedule runs.

        A decorator, with or without arguments; or call it with a name and a function. It is
        called with the `Schedule` and with the last run of it that was done or has failed,
        a `Task`, if there is one; and returns an `Answer`, `True` or `False`, or a `Snooze`
        to be asked again later.

        Raises:
          ConditionExistsError: the name is taken.
          TypeError: it is not an async function, or has no name of its own.
        """
        if name is not None and not isinstance(name, str):
            return self._put_condition(None, name)

        def decorate(decorated: C) -> C:
            return self._put_condition(name, decorated)

        return decorate if function is None else decorate(function)

    def _put_condition(self, name_: str | None, function: C) -> C:
        check_async(function, "function")
        try:
            inspect.signature(function).bind(None, None)
        except TypeError:
            raise TypeError(
                "function: a condition is called with a schedule and its last run, so"
                f" {shown(function)} must take two arguments"
            ) from None
        found = _own_name(function, "name") if name_ is None else name(name_, "name")
        if found in self._conditions:
            raise ConditionExistsError(found)
        self._conditions[found] = function
        return function

    def get_condition(self, name: str) -> Condition:
        """The condition of this name, or a `ConditionNotFoundError`."""
        try:
            return self._conditions[name]
        except KeyError:
            raise ConditionNotFoundError(name) from None

    @property
    def condition_names(self) -> frozenset[str]:
        """The names of the conditions registered so far."""
        return frozenset(self._conditions)

    def _register(self, work_id: str | None, function: F, **how: Any) -> F:
        if not callable(function):
            raise TypeError(f"function: must be a function, not {shown(function)}")
        if work_id is None:
            work_id = _own_name(function, "work_id")
        called_in_the_end = called(function)
        if inspect.isasyncgenfunction(called_in_the_end) or inspect.isgeneratorfunction(
            called_in_the_end
        ):
            raise TypeError(f"function: {function!r} is a generator, which is never run")
        if how["in_process"]:
            if is_async(function):
                raise TypeError(
                    f"function: {shown(function)} is async, and a process runs plain"
                    " functions: leave out process, or make it a plain one"
                )
            address(function)
        work = Work(
            name(work_id, "work_id"),
            function,
            in_thread=not is_async(function),
            check_param=_param_check(function),
            **how,
        )
        self._put(work)
        return function


def _own_name(function: Callable[..., Any], argument: str) -> str:
    own: str | None = getattr(function, "__name__", None)
    if own is None or own == "<lambda>":
        raise TypeError(f"{argument}: {function!r} has no name, so give it one")
    return own


def _check_kind(value: object, kind: type, argument: str, what: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{argument}: must be {what}, not {shown(value)}")


def _check_extra() -> None:
    if find_spec("trio_parallel") is None:
        raise ModuleNotFoundError(
            'process=True needs trio-parallel: pip install "trio_gokugen[process]"',
            name="trio_parallel",
        )


def _seconds(timeout: float | timedelta | None) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout: must be a number of seconds, not {shown(timeout)}")
    try:
        seconds = float(timeout)
    except OverflowError:
        seconds = math.inf
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout: must be positive and finite, not {shown(timeout)}")
    return seconds


def _param_check(function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], None]:
    """What raises unless the function can be called with those keyword arguments.

    The signature is read once, here; `inspect.Signature.bind` would take a good part of
    the time that adding a task takes.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:
        if isinstance(function, functools.partial):
            raise TypeError(f"function: {error}") from None
        return lambda _: None  # a few functions written in C do not tell
    if unnamed := [
        p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty
    ]:
        raise TypeError(
            f"function: {shown(function)} cannot be called by keywords alone, as a work is:"
            f" it takes {quoted(unnamed)} by position only. Write a function around it"
        )
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    accepted = frozenset(p.name for p in by_name)
    required = frozenset(p.name for p in by_name if p.default is p.empty)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def check(param: Mapping[str, Any]) -> None:
        missing = required - param.keys()
        left_over = frozenset[str]() if takes_any else param.keys() - accepted
        if missing or left_over:
            raise wrong_names(missing, left_over, "work")

    return check
