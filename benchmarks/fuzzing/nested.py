"""Odd values in nested dicts and lists, of JSON and of checkpoints alike."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

PATHS = (
    "../../victim/made",
    "../victim/keep/notes.txt",
    "/etc/passwd",
    "/dev/zero",
    "/",
    ".",
    "..",
    "",
    "pipe",
    "a/" * 3000,
)
PLAIN: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 17, 1.5, -0.5, 1e-300, 1e308, 10**9, 2**31, 2**63, 2**64, 10**30, -(10**30)),
    *(
        math.nan,
        float("inf"),
        -float("inf"),
        "",
        " ",
        "abc",
        "0",
        "1",
        "nan",
        "%s%n",
        "{}",
        "\0",
        "a\0b",
        "\x1b[31m",
    ),
    *(
        "a\nb",
        "=1+1",
        "<script>",
        "日本語",
        "A" * 100_000,
        [],
        {},
        [None],
        [[[]]],
        {"": ""},
        {"a": {"b": 1}},
        [1] * 10_000,
    ),
    *([1, 2], [1, 2, 3], [0, 0, 0], [-1, -1, -1], ["a", "a", "a"], [1e9, 1e9, 1e9], [math.nan] * 3, *PATHS),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, Any, tuple[Any, ...]]]:
    """Each place in nested dicts and lists: its dict or list, its key or index, and its path."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, inner in pairs:
        found.append((value, key, (*path, key)))
        found += places(inner, (*path, key))
    return found


def change(random: Random, value: Any, values: Sequence[Any] = PLAIN) -> str:
    """Change nested dicts and lists at a random place. Returns what was changed.

    Args:
        values: to set what is there to.
    """
    found = places(value)
    if not found:
        return "nothing left to change"
    container, key, path = random.choice(found)
    name = "/".join(str(part) for part in path)
    match random.choice(("set", "set", "set", "set", "removed", "added", "renamed", "wrapped", "scaled", "moved")):
        case "removed":
            del container[key]
            return f"no {name}"
        case "added":
            added = random.choice(values)
            if isinstance(container, dict):
                container[random.choice(("extra", "", "../../victim/made", "format", "file", "%s", "0"))] = added
            else:
                container.insert(random.randrange(len(container) + 1), added)
            return f"beside {name} another {_shown(added)}"
        case "renamed" if isinstance(container, dict):
            new = random.choice(("", "abc", f"{key} ", str(key).upper(), "../../victim/made", "\0", "A" * 1000))
            container[new] = container.pop(key)
            return f"{name} called {new[:40]!r}"
        case "wrapped":
            container[key] = random.choice(
                ([container[key]], {"0": container[key]}, str(container[key])[:1000], [container[key]] * 2)
            )
            return f"{name} is {_shown(container[key])}"
        case "scaled" if isinstance(container[key], int | float) and not isinstance(container[key], bool):
            container[key] = container[key] * random.choice((-1, 0, 2, 1000, 10**9, 1e-9, math.nan))
            return f"{name} is {_shown(container[key])}"
        case "moved":
            other, other_key, other_path = random.choice(found)
            if isinstance(container, dict) or key < len(container):
                container[key] = other[other_key] if not _holds(other[other_key], container) else None
            return f"{name} is a copy of {'/'.join(str(part) for part in other_path)}"
    container[key] = random.choice(values)
    return f"{name} is {_shown(container[key])}"


def nest(depth: int) -> Any:
    """A list in a list in a list …"""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _holds(value: Any, other: Any) -> bool:
    """Whether a value is another one or has it somewhere in it; a circle has no end."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is other or any(_holds(one, other) for one in inner)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}... of {len(text)} characters"
