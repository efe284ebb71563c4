"""Write a plan as a file of flags that ``main.py`` and ``utils.crossval`` take."""

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from utils.config.messages import name_flags
from utils.planning.choices import Plan, Value
from utils.system.files import write_text
from utils.system.text import one_line

WIDTH = 120


def write_recipe(path: Path, plan: Plan, head: Sequence[str], fixed: dict[str, Value]) -> None:
    """Write a recipe in which a comment above each line of flags has the reason.

    Args:
        head: sentences for its top.
        fixed: settings that are no choice of the plan, such as where the scans are.

    Raises:
        WriteError: if it can't be written.
    """
    lines = [*map(_comment, head), ""]
    for title, texts in (("Please check:", plan.questions), ("Notes:", plan.remarks)):
        if texts:
            lines += [_comment(title), *(_comment(f"- {name_flags(text)}") for text in texts), ""]
    lines += [_flags(fixed), ""]
    for section in plan.sections:
        lines.append(f"# {section.title}")
        for choice in section.choices:
            lines += [_comment(name_flags(choice.reason)), _flags(choice.settings)]
        lines.append("")
    write_text(path, "\n".join(lines))


def _comment(text: str) -> str:
    wrapper = textwrap.TextWrapper(
        WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False, break_long_words=False
    )  # a path that is copied from it has to be whole
    return "\n".join(wrapper.wrap(one_line(text)))


def _flags(settings: object) -> str:
    assert isinstance(settings, dict)
    return " ".join(_flag(name, value) for name, value in settings.items())


def _flag(name: str, value: Value) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    # a negative number in scientific notation looks like a flag, unless it is joined to its own
    return f"--{name}={value:g}" if isinstance(value, float) else f"--{name}={shlex.quote(str(value))}"
