"""Values from files and flags, checked against the types that a class declares for them."""

import dataclasses
import functools
import reprlib
import typing
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

STRICT = ConfigDict(strict=True)
MOST_FAULTS = 3  # that a message lists
LONGEST_PLACE = 60


def shown(value: object) -> str:
    """A value for a message of one line; of long ones the ends, and of objects the type."""
    if not isinstance(value, str | int | float | list | tuple | dict | None):
        return f"a {type(value).__name__}"
    return " ".join(reprlib.repr(value).split())


def shown_text(text: str) -> str:
    """A text from a file for a message of one line: as it is if it can be printed, else with escapes."""
    return text if text.isprintable() else repr(text)


def type_faults(settings: Any) -> list[str]:
    """What is wrong with the fields of a dataclass, as "`width` should be a valid integer, not 'x'".

    A whole number may stand for a float, but a truth value for no number.
    """
    faults = []
    declared: Any = type(settings)
    for name, kind in _types(declared).items():
        value = getattr(settings, name)
        try:
            _adapter(kind).validate_python(value)
        except ValidationError as error:
            parts = len(typing.get_args(kind))
            what = f"must be {parts} numbers" if parts > 1 else _what(error.errors()[0]["msg"])
            faults.append(f"`{name}` {what}, not {shown(value)}")
    return faults


def schema_faults(error: ValidationError) -> str:
    """What a value that was checked against a schema has wrong, in one line."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    texts = []
    for fault in faults[:MOST_FAULTS]:
        place = shown_text(".".join(map(str, fault["loc"])))
        place = place if len(place) <= LONGEST_PLACE else f"{place[:LONGEST_PLACE]}…"
        texts.append(f"{place} {_what(fault['msg'])}".strip())
    more = len(faults) - MOST_FAULTS
    return "; ".join(texts) + (f" (and {more} more)" if more > 0 else "")


@functools.cache
def _types(settings: type) -> dict[str, Any]:
    hints = typing.get_type_hints(settings)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=STRICT)


def _what(message: str) -> str:
    """A message of pydantic as the end of a sentence about a value."""
    words = message.removeprefix("Input ").removeprefix("Value error, ")
    return {"Field required": "is missing"}.get(words, words[:1].lower() + words[1:])
