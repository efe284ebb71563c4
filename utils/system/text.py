"""Text of others as people can read it."""

import re
from collections.abc import Sequence

# blanks, control characters, and those that turn the direction of all that follows in the line
BREAKS = re.compile("[\\s\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
SHOWN = 5  # names in a sentence


def one_line(text: str) -> str:
    """The text in one line: line breaks, tabs and other control characters become single spaces.

    Characters that UTF-8 can't hold, as in the name of a file that isn't UTF-8, become their escapes: ``\\udcff``.
    """
    printable = text.encode("utf-8", errors="backslashreplace").decode("utf-8")
    return BREAKS.sub(" ", printable).strip()


def shortened(text: str, most: int = 300) -> str:
    """The text; of a longer one than ``most`` characters its two ends."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"


def few_names(names: Sequence[str]) -> str:
    """Names for a sentence: the first few, and how many more there are."""
    shown, more = [shortened(one_line(name)) for name in names[:SHOWN]], len(names) - SHOWN
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def printable(name: str) -> str:
    """A name with %0A and the like for what is no letter: line breaks, and bytes that aren't UTF-8."""
    if name.isprintable():
        return name
    return "".join(
        letter
        if letter.isprintable()
        else "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogateescape"))
        for letter in name
    )
