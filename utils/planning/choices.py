"""What a plan is: settings, each with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass

Value = int | float | str | bool


@dataclass(frozen=True)
class Choice:
    """Settings that one reason explains.

    Attributes:
        settings: their values by name, as ``main.py`` calls its flags (``space_x``).
        reason: in plain sentences; names of settings stand in backquotes.
    """

    settings: Mapping[str, Value]
    reason: str


@dataclass(frozen=True)
class Section:
    """The choices about one theme, such as preprocessing."""

    title: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Plan:
    """How a network is to be trained.

    Attributes:
        sections: all settings, theme by theme.
        questions: what the scans don't tell, and where a person should look, a sentence or two each.
        remarks: what is odd about the scans, a sentence each.
    """

    sections: tuple[Section, ...]
    questions: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Value]:
        """All settings by name."""
        return {
            name: value
            for section in self.sections
            for choice in section.choices
            for name, value in choice.settings.items()
        }
