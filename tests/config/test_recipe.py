"""A recipe says in comments why each flag is as it is, and ``main.py`` reads it as it was meant."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config.parser import Parser
from utils.config.recipe import WIDTH, write_recipe
from utils.planning.choices import Choice, Plan, Section, Value


def read(path: Path) -> list[str]:
    """The flags of a recipe."""
    return Parser().with_files([f"@{path}"])


def recipe(
    path: Path,
    reason: str,
    settings: dict[str, Value],
    questions: tuple[str, ...] = (),
    remarks: tuple[str, ...] = (),
) -> str:
    plan = Plan((Section("Section", (Choice(settings, reason),)),), questions, remarks)
    write_recipe(path, plan, ["Head"], {"data_dir": "a folder's scans"})
    return path.read_text()


def test_a_reason_stands_above_its_flags(tmp_path: Path) -> None:
    text = recipe(tmp_path / "plan.args", "The scans have `space_x` 2.", {"space_x": 2.0, "noamp": True, "wide": False})
    assert text.splitlines() == [
        "# Head",
        "",
        "--data_dir='a folder'\"'\"'s scans'",
        "",
        "# Section",
        "# The scans have --space_x 2.",
        "--space_x=2 --noamp --no-wide",
    ]
    assert read(tmp_path / "plan.args") == ["--data_dir=a folder's scans", "--space_x=2", "--noamp", "--no-wide"]


def test_questions_stand_on_top(tmp_path: Path) -> None:
    text = recipe(tmp_path / "plan.args", "Why.", {"space_x": 2.0}, ("What are the `labels` called?",), ("a: is odd.",))
    assert "# Please check:\n# - What are the --labels called?\n\n# Notes:\n# - a: is odd.\n\n" in text
    assert text.index("Please check") < text.index("--data_dir")


def test_numbers_are_read_as_they_were(tmp_path: Path) -> None:
    values: dict[str, Value] = {"a": -1024.0, "b": 1e-5, "c": -1.71e-5, "d": 1234567, "e": 0.0004}
    recipe(tmp_path / "plan.args", "Why.", values)
    found = {flag.partition("=")[0][2:]: float(flag.partition("=")[2]) for flag in read(tmp_path / "plan.args")[1:]}
    assert found == values


names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=30)


@given(reason=st.text(max_size=300), question=st.text(max_size=300), name=names)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_whatever_a_comment_says_it_is_a_comment(reason: str, question: str, name: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "plan.args")
        plan = Plan((Section("Section", (Choice({"space_x": 2.0}, reason),)),), (question,), (question,))
        write_recipe(path, plan, [reason], {"logdir": name})
        assert read(path) == [f"--logdir={name}", "--space_x=2"]


def test_long_reasons_are_wrapped_and_flags_kept_whole(tmp_path: Path) -> None:
    text = recipe(tmp_path / "plan.args", "`max_epochs` and " * 40, {"max_epochs": 5})
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert max(map(len, comments)) <= WIDTH
    assert sum(line.count("--max_epochs") for line in comments) == 40
