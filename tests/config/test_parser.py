"""What all commands share: flags from files, short help, the nearest flag for a mistyped one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.networks.test_registry import HEAD, NETWORK
from utils.config.flags import parse_crossval, parse_test, parse_train, train_parser
from utils.config.messages import name_flags


def help_of(program: str, *flags: str) -> str:
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, str(REPOSITORY / program), *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def error_of(flags: list[str], capsys: pytest.CaptureFixture[str], parse: object = parse_train) -> str:
    """The one line that a command line ends with."""
    with pytest.raises(SystemExit) as stop:
        parse(flags)  # type: ignore[operator]
    output: str = capsys.readouterr().err
    assert stop.value.code == 2
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    return output


def test_a_file_of_flags_is_read_as_a_shell_would(tmp_path: Path) -> None:
    recipe = tmp_path / "some.args"
    recipe.write_text(
        "# a comment, isn't it\n\n--logdir 'two words'  # and another\n--optim_lr=3e-4 --noamp --data_dir x#1\n"
    )
    args = parse_train(["--optim_lr=1", f"@{recipe}", "--max_epochs=7"])
    assert (args.logdir, args.optim_lr, args.noamp, args.max_epochs) == ("two words", 3e-4, True, 7)
    assert args.data_dir == "x#1"
    assert parse_train([f"@{recipe}", "--optim_lr=1"]).optim_lr == 1  # what comes last counts


def test_quotes_keep_what_would_be_a_comment_and_a_mark_of_the_encoding_is_none(tmp_path: Path) -> None:
    recipe = tmp_path / "some.args"
    recipe.write_text("\ufeff--data_dir 'my scans # 3' # 'mine'\n--logdir \"a # b\"\n", encoding="utf-8")
    args = parse_train([f"@{recipe}"])
    assert (args.data_dir, args.logdir) == ("my scans # 3", "a # b")


def test_a_file_of_flags_may_name_another_from_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.args").write_text("--fold 3 --optim_lr 0.5\n")
    (tmp_path / "some.args").write_text("--fold 2\n@tasks/task.args --optim_lr 0.25\n")
    args = parse_train([f"@{tmp_path}/some.args"])
    assert (args.fold, args.optim_lr) == (3, 0.25)

    (tmp_path / "tasks" / "task.args").write_text("--fold 3 @../some.args\n")
    message = error_of([f"@{tmp_path}/some.args"], capsys)
    words = "names itself by way of the files that it names. Take it out of one of them"
    assert f"@{tmp_path}/tasks/../some.args: {words}" in message

    (tmp_path / "tasks" / "task.args").unlink()
    message = error_of([f"@{tmp_path}/some.args"], capsys)
    assert f"@{tmp_path}/tasks/task.args: can't be read as flags (No such file or directory)" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("--noamp\n--logdir 'two words", "{file}: can't be read as flags (No closing quotation). Give a text file of"),
        (b"\xff\xfe\x00", "{file}: can't be read as flags ('utf-8' codec can't decode"),
        ("--fold 1\n\n--nothing=3", "unrecognized arguments: --nothing=3 (python"),
        ("--feature_size 0", "argument --feature_size: must be at least 1, not 0 (python"),
        (None, "{file}: can't be read as flags (No such file or directory). Give a text file of flags, as recipes/"),
    ],
)
def test_a_bad_file_of_flags_ends_with_one_line(
    content: str | bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "some.args").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = error_of([f"@{tmp_path / 'some.args'}"], capsys)
    assert words.format(file=f"@{tmp_path / 'some.args'}") in message


def test_short_help_fits_three_screens_of_24_lines_and_says_how_to_see_more() -> None:
    text = help_of("main.py", "--help")
    assert text.count("\n") <= 3 * 24
    assert max(map(len, text.splitlines())) <= 100
    shown = set(re.findall(r"^  (--[\w-]+|--\[no-\]\w+)", text, re.MULTILINE))
    assert {"--data_dir", "--logdir", "--save_checkpoint", "--max_epochs", "--feature_size", "--roi_x"} <= shown
    assert not {"--dist-url", "--smooth_nr", "--norm_name", "--allow_change"} & shown
    assert re.search(r"\n--help-all lists \d+ more flags\.\n$", text)


def test_all_help_lists_every_flag() -> None:
    text = help_of("main.py", "--help-all")
    listed = set(re.findall(r"--[a-zA-Z][\w-]*", text.replace("[no-]", "")))
    parser = train_parser()
    own = {f"--{name}" for name in ("mlp_dim", "norm_name", "deep_supervision", "vit_lr")}
    flags = {flag for flag in parser._option_string_actions if flag.startswith("--") and not flag.startswith("--no-")}
    flags -= {"--help", "--help-all", "--num_layers"}  # the last is of primus alone
    assert own <= flags
    assert flags <= listed, sorted(flags - listed)
    rare = int(re.search(r"lists (\d+) more", help_of("main.py", "--help"))[1])  # type: ignore[index]
    short = parser.format_help()
    assert rare == sum(f"  {flag}" not in short.replace("[no-]", "") for flag in flags)


@pytest.mark.parametrize("program", ["main.py", "test.py"])
def test_help_of_a_network_of_ones_own_has_its_flags(program: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HEAD + NETWORK.format(name="mine", suffix=""))
    text = help_of(program, f"--model_name={tmp_path / 'mine.py'}", "--help-all")
    assert re.search(r"^  --width X +channels at full resolution", text, re.MULTILINE)
    assert "--rate X" in text
    assert "--[no-]wide" in text
    assert ("--mlp_dim" in text) == (program == "test.py")  # which a checkpoint of any network may be given to


@pytest.mark.parametrize(
    ("parse", "flags", "words"),
    [
        (parse_train, ["--optm_lr=3"], "unrecognized arguments: --optm_lr=3; did you mean --optim_lr for --optm_lr? ("),
        (parse_train, ["--max_epoch", "3"], "--max_epoch 3; did you mean --max_epochs for --max_epoch? ("),
        (
            parse_train,
            ["--rio_x=16", "--fodl=1"],
            "; did you mean --roi_x for --rio_x?; did you mean --fold for --fodl? (",
        ),
        (parse_train, ["--wholly_unlike"], "unrecognized arguments: --wholly_unlike ("),
        (parse_test, ["--organ", "liver"], "--organ liver; did you mean --organs for --organ? ("),
        (parse_crossval, ["--fods", "1"], "--fods 1; did you mean --folds for --fods? ("),
        (parse_train, ["recipes/demo.args"], "recipes/demo.args; a file of flags is named with an @ before it ("),
    ],
)
def test_a_mistyped_flag_is_told_the_nearest(
    parse: object, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in error_of(flags, capsys, parse)


def test_flags_are_not_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --save_check" in error_of(["--save_check"], capsys)


def test_test_py_says_that_flags_of_training_are_main_pys(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(["--roi_x=48", "--batch_size", "2", "--optim_lr=1"], capsys, parse_test).startswith(
        "error: unrecognized arguments: --batch_size 2 --optim_lr=1; main.py takes them, and what test.py needs of them"
        " is in the weights: leave them out ("
    )
    message = error_of(["--batch_size", "2", "--nothing"], capsys, parse_test)
    assert message.startswith("error: unrecognized arguments: --batch_size 2 --nothing (")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`out_channels` is 14", "--out_channels is 14"),
        ("`img_size` must be multiples of 16", "--roi_x, --roi_y, --roi_z must be multiples of 16"),
        ("give `spacing`", "give --space_x, --space_y, --space_z"),
        ("`dist_url` can't be reached", "--dist-url can't be reached"),
        ("`a file.nii` and `12` stay", "`a file.nii` and `12` stay"),
    ],
)
def test_a_field_in_backquotes_becomes_its_flag(text: str, expected: str) -> None:
    assert name_flags(text) == expected


def test_lines_that_a_shell_would_join(tmp_path: Path) -> None:
    (tmp_path / "pasted.args").write_text("--optim_lr 0.5 \\\n  --max_epochs 7 \\\r\n  --fold 2\n")
    args = parse_train([f"@{tmp_path}/pasted.args"])
    assert (args.optim_lr, args.max_epochs, args.fold) == (0.5, 7, 2)


def test_a_number_beyond_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--rank" in error_of(["--rank", "9" * 400], capsys)
