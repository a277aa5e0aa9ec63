"""How much a program may be given, on Linux: what that would not start it with.

An argument, or a variable with its name, has at most 32 pages of memory. All of them
together have a quarter of what the stack may take, but never more than 6 MiB, nor less than
128 KiB. These are the kernel's own rules: some C libraries tell less of it, or more.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping, Sequence

if sys.platform == "linux":  # pragma: no branch: of other systems it is not known
    import resource

_ENCODING = sys.getfilesystemencoding()
_POINTER = struct.calcsize("P")
_PAGES = 32
_LEAST_IN_ALL, _MOST_IN_ALL = 128 * 1024, 6 * 1024 * 1024


def find_excess(
    argv: Sequence[str], env: Mapping[str, str]
) -> tuple[Sequence[int], str] | None:
    """What is too much of that for the system to start a program with; or nothing.

    Returns:
      The places of the arguments that have a part in it, and the reason.
    """
    most, most_in_all = _limits()
    for index, argument in enumerate(argv):
        if (size := _size(argument)) > most:
            return [index], _told(f"argv[{index}]", size, most)
    variables = {name: f"{name}={value}" for name, value in env.items()}
    for name, variable in variables.items():
        if (size := _size(variable)) > most:
            return [], _told(f"the variable {name}", size, most)
    # The path of the program is there a second time, beside the arguments.
    strings = argv[0], *argv, *variables.values()
    size = sum(map(_size, strings)) + _POINTER * (len(strings) - 1)
    if size > most_in_all:
        what = "the arguments and the variables"
        return range(len(argv)), _told(what, size, most_in_all)
    return None


def _limits() -> tuple[float, float]:
    """The bytes that one string may have, and all of them."""
    if sys.platform != "linux":  # pragma: no cover: only other systems get here
        return math.inf, math.inf
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    most_in_all = _MOST_IN_ALL
    if stack != resource.RLIM_INFINITY:
        most_in_all = max(min(stack // 4, _MOST_IN_ALL), _LEAST_IN_ALL)
    return _PAGES * resource.getpagesize(), most_in_all


def _size(string: str) -> int:
    """The bytes of a string, with the NUL at its end."""
    # What cannot be encoded cannot be given either, and that is for the system to say.
    return len(string.encode(_ENCODING, "replace")) + 1


def _told(what: str, size: int, most: float) -> str:
    return (
        f"{what} would be {size} bytes long, and the system takes at most {most}: have the"
        " program read from stdin what is long"
    )
