"""The command line that users of the 2021 repository know, flag by flag."""

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from utils.config import flags
from utils.config.flags import (
    as_flags,
    network_options,
    parse_crossval,
    parse_test,
    parse_train,
    preprocessing,
    recorded_flags,
    train_parser,
)

# name, default in 2021, in main.py, in test.py; what a checkpoint knows has no default in test.py here
FLAGS_OF_2021 = """
checkpoint None m
logdir test m
pretrained_dir ./pretrained_models/ mt
data_dir /dataset/dataset0/ mt
pretrained_model_name UNETR_model_best_acc.pth mt
save_checkpoint False m
max_epochs 5000 m
batch_size 1 m
sw_batch_size 1 m
optim_lr 0.0001 m
optim_name adamw m
reg_weight 1e-05 m
momentum 0.99 m
noamp False m
val_every 100 m
distributed False mt
world_size 1 m
rank 0 m
dist_url tcp://127.0.0.1:23456 m
dist_backend nccl m
workers 8 mt
model_name unetr m
pos_embed perceptron mT
norm_name instance mT
num_heads 12 mT
mlp_dim 3072 mT
hidden_size 768 mT
feature_size 16 mT
in_channels 1 mT
out_channels 14 mT
use_normal_dataset False m
a_min -175.0 mT
a_max 250.0 mT
b_min 0.0 mT
b_max 1.0 mT
space_x 1.5 mT
space_y 1.5 mT
space_z 2.0 mT
roi_x 96 mT
roi_y 96 mT
roi_z 96 mT
dropout_rate 0.0 mT
RandFlipd_prob 0.2 mt
RandRotate90d_prob 0.2 mt
RandScaleIntensityd_prob 0.1 mt
RandShiftIntensityd_prob 0.1 mt
infer_overlap 0.5 mt
lrschedule warmup_cosine m
warmup_epochs 50 m
resume_ckpt False m
resume_jit False m
smooth_dr 1e-06 m
smooth_nr 0.0 m
saved_checkpoint ckpt t
fold 0 mt
"""


@pytest.mark.parametrize("line", FLAGS_OF_2021.split("\n")[1:-1])
def test_flags_keep_their_defaults(line: str) -> None:
    name, default, programs = line.split()
    if "m" in programs:
        assert str(vars(parse_train([]))[name]) == default
    if "t" in programs:
        value = vars(parse_test([]))[name]
        assert str(value[0] if isinstance(value, list) else value) == default  # test.py takes several weights files
    if "T" in programs:
        assert vars(parse_test([]))[name] is None
        assert str(recorded_flags()[name]) == default


COMMANDS_OF_2021 = {
    "train": "--feature_size=32 --batch_size=1 --logdir=unetr_test --fold=0 --optim_lr=1e-4 "
    "--lrschedule=warmup_cosine --infer_overlap=0.5 --save_checkpoint --data_dir=/dataset/dataset0/",
    "finetune": "--batch_size=1 --logdir=unetr_pretrained --fold=0 --optim_lr=1e-4 --lrschedule=warmup_cosine "
    "--infer_overlap=0.5 --save_checkpoint --data_dir=/dataset/dataset0/ --pretrained_dir=./pretrained_models/ "
    "--pretrained_model_name=UNETR_model_best_acc.pth --resume_ckpt",
    "finetune TorchScript": "--batch_size=1 --logdir=unetr_pretrained --fold=0 --optim_lr=1e-4 "
    "--lrschedule=warmup_cosine --infer_overlap=0.5 --save_checkpoint --data_dir=/dataset/dataset0/ "
    "--pretrained_dir=./pretrained_models/ --noamp --pretrained_model_name=UNETR_model_best_acc.pt --resume_jit",
}


@pytest.mark.parametrize("command", COMMANDS_OF_2021.values(), ids=COMMANDS_OF_2021)
def test_training_commands_of_2021_are_parsed(command: str) -> None:
    args = parse_train(command.split())
    assert (args.fold, args.infer_overlap, args.save_checkpoint, args.data_dir) == (0, 0.5, True, "/dataset/dataset0/")
    assert args.feature_size == (32 if "feature_size" in command else 16)


def test_blocks_are_on_unless_turned_off() -> None:
    assert parse_train([]).res_block
    assert parse_train(["--res_block", "--conv_block"]).conv_block
    args = parse_train(["--no-res_block", "--no-conv_block"])
    assert not args.res_block
    assert not args.conv_block


def test_what_a_recipe_turns_on_can_be_turned_off() -> None:
    recipe = f"@{REPOSITORY}/recipes/hippocampus.args"
    assert parse_train([recipe]).deep_supervision
    assert not parse_train([recipe, "--no-deep_supervision"]).deep_supervision


def test_json_list_defaults_to_the_name_of_the_fold() -> None:
    assert parse_train([]).json_list is None
    assert parse_test([]).json_list is None


def test_a_checkpoint_record_leads_back_to_its_flags() -> None:
    flags = {**recorded_flags(), "intensity": "zscore", "space_z": 3.5, "roi_y": 64, "res_block": False}
    assert as_flags("unetr", network_options(flags), preprocessing(flags)) == flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--feature_size 0", "argument --feature_size: must be at least 1, not 0"),
        ("--roi_x 90", "--roi_x must be a multiple of 16, not 90"),
        ("--optim_name adagrad", "argument --optim_name: invalid choice: 'adagrad'"),
        ("--lrschedule step", "argument --lrschedule: invalid choice: 'step'"),
        ("--model_name vnet", "argument --model_name: invalid choice: 'vnet'"),
        ("--optim_lr fast", "argument --optim_lr: must be a number, not 'fast'"),
        ("--optim_lr nan", "argument --optim_lr: must be above 0, not nan"),
        ("--space_z 0", "argument --space_z: must be above 0, not 0"),
        ("--RandFlipd_prob 1.5", "argument --RandFlipd_prob: must be at least 0 and at most 1, not 1.5"),
        ("--seed 99999999999999999999", "argument --seed: must be at least 0 and at most 9.22337e+18"),
        ("--infer_overlap 1", "--infer_overlap must be below 1"),
        ("--ema_decay 1", "--ema_decay must be below 1"),
        ("--drop_path_rate 1", "--drop_path_rate must be below 1"),
        ("--model_name segresnet --vit_lr 1", "--vit_lr: segresnet has no ViT; leave it out"),
        ("--patch_size 4", "argument --patch_size: invalid choice: 4 (choose from"),
        ("--patch_size 8 --roi_x 20", "--roi_x must be a multiple of 8, not 20"),
        ("--ema_decay 0", "argument --ema_decay: must be above 0 and at most 1, not 0"),
        ("--clip_grad_norm 0", "argument --clip_grad_norm: must be above 0, not 0"),
        ("--num_heads 5", "--num_heads 5 must divide --hidden_size 768"),
        ("--a_min 300", "--a_max 250 must be above --a_min 300"),
        ("--resume_ckpt --resume_jit", "--resume_ckpt and --resume_jit exclude each other"),
        ("--vit_weights a --checkpoint b", "--vit_weights and --checkpoint exclude each other"),
        ("--out_channels 1", "--out_channels must be at least 2"),
        ("--no_such_flag", "unrecognized arguments: --no_such_flag"),
        ("--max_epoch 3", "unrecognized arguments: --max_epoch"),
        ("recipes/demo.args", "recipes/demo.args; a file of flags is named with an @ before it"),
    ],
)
def test_wrong_flags_end_with_one_line(flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_train(flags.split())
    output = capsys.readouterr().err
    assert stop.value.code == 2
    assert output.startswith("error: ")
    assert words in output
    assert output.count("\n") == 1


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


@pytest.mark.parametrize("name", ["", ".", "..", "../elsewhere", "a/../.."])
def test_a_run_without_a_folder_of_its_own_below_runs_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_train([f"--logdir={name}"])
    assert f"argument --logdir: must be a name below runs/, not {name!r}" in capsys.readouterr().err


def test_a_file_of_flags_may_name_another_from_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.args").write_text("--fold 3 --optim_lr 0.5\n")
    (tmp_path / "some.args").write_text("--fold 2\n@tasks/task.args --optim_lr 0.25\n")
    args = parse_train([f"@{tmp_path}/some.args"])
    assert (args.fold, args.optim_lr) == (3, 0.25)

    (tmp_path / "tasks" / "task.args").write_text("--fold 3 @../some.args\n")
    with pytest.raises(SystemExit):
        parse_train([f"@{tmp_path}/some.args"])
    words = (
        f"@{tmp_path}/tasks/../some.args: comes back to itself by way of the files that it names. Take it out of one"
    )
    assert words in capsys.readouterr().err

    (tmp_path / "tasks" / "task.args").unlink()
    with pytest.raises(SystemExit):
        parse_train([f"@{tmp_path}/some.args"])
    words = f"@{tmp_path}/tasks/task.args, which @{tmp_path}/some.args names, can't be read as flags"
    assert words in capsys.readouterr().err


def test_test_py_says_that_flags_of_training_are_main_pys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_test(["--roi_x=48", "--batch_size", "2", "--optim_lr=1"])
    assert capsys.readouterr().err.startswith(
        "error: unrecognized arguments: --batch_size 2 --optim_lr=1; main.py takes them, and what test.py needs of them"
        " is in the weights: leave them out ("
    )
    with pytest.raises(SystemExit):
        parse_test(["--batch_size", "2", "--nothing"])
    assert capsys.readouterr().err.startswith("error: unrecognized arguments: --batch_size 2 --nothing (")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "--noamp\n--logdir 'two words",
            "some.args, line 2: can't be read as flags (No closing quotation). Give a text",
        ),
        (b"\xff\xfe\x00", "some.args: can't be read as flags ('utf-8' codec can't decode"),
        ("--fold 1\n\n--nothing=3", "unrecognized arguments: --nothing=3; {file}, line 3 has --nothing (python"),
        (
            "--feature_size 0",
            "--feature_size: must be at least 1, not 0; {file}, line 1 has --feature_size (python",
        ),
        (None, "some.args: can't be read as flags (No such file or directory). Give a text file of flags, as recipes/"),
    ],
)
def test_a_bad_file_of_flags_ends_with_one_line(
    content: str | bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "some.args").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as stop:
        parse_train([f"@{tmp_path / 'some.args'}"])
    output = capsys.readouterr().err
    assert stop.value.code == 2
    assert words.format(file=f"@{tmp_path / 'some.args'}") in output
    assert output.count("\n") == 1


def test_a_flag_that_no_file_has_is_not_said_to_be_in_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "some.args").write_text("--fold 1 --roi_x 96")
    with pytest.raises(SystemExit):
        parse_train([f"@{tmp_path / 'some.args'}", "--roi_y=90"])
    assert "some.args" not in capsys.readouterr().err


RECIPES = sorted((REPOSITORY / "recipes").glob("*.args"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_names_neither_data_nor_run(recipe: Path) -> None:
    args, plain = parse_train([f"@{recipe}"]), parse_train([])
    for name in ("data_dir", "json_list", "fold", "logdir", "save_checkpoint", "overwrite", "device", "seed"):
        assert getattr(args, name) == getattr(plain, name)


def test_btcv_2021_says_what_was_published_flag_by_flag() -> None:
    """Also where a default says the same, so that the recipe holds whatever becomes of that."""
    words = train_parser().with_files([f"@{REPOSITORY}/recipes/btcv_2021.args"])
    said = dict(zip([word.lstrip("-") for word in words[::2]], words[1::2], strict=True))
    published = dict(line.split()[:2] for line in FLAGS_OF_2021.split("\n")[1:-1])
    of_the_result = said.keys() & published.keys()
    assert published.keys() - said.keys() == {
        *("checkpoint", "logdir", "save_checkpoint", "data_dir", "fold", "workers", "use_normal_dataset"),
        *("pretrained_dir", "pretrained_model_name", "resume_ckpt", "resume_jit", "saved_checkpoint"),
        *("distributed", "world_size", "rank", "dist_url", "dist_backend", "noamp", "sw_batch_size"),
        "momentum",  # of sgd
    }
    for name in of_the_result:
        expected = published[name]
        assert said[name] == expected or float(said[name]) == float(expected), name
    fixed_in_its_code = {"intensity", "crops_per_scan", "flips"}
    off = {"patch_size", "drop_path_rate", "augment"}
    assert said.keys() - of_the_result == fixed_in_its_code | off
    assert (said["intensity"], said["crops_per_scan"], said["flips"]) == ("ct", "4", "published")
    assert (said["patch_size"], said["drop_path_rate"], said["augment"]) == ("16", "0", "published")


def test_fast_is_a_smaller_overlap(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_test([]).infer_overlap == 0.5
    assert parse_test(["--fast"]).infer_overlap == 0.25
    with pytest.raises(SystemExit):
        parse_test(["--fast", "--infer_overlap=0.7"])
    assert "argument --infer_overlap: not allowed with argument --fast" in capsys.readouterr().err


def test_the_readme_names_every_flag() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`--([A-Za-z_0-9-]+)", readme))
    flags = {name for name in {**vars(parse_train([])), **vars(parse_test([]))} if not name.startswith("dist_")}
    assert flags <= documented, f"not in the README: {sorted(flags - documented)}"
    assert {"dist-url", "dist-backend"} <= documented


def test_the_readme_tells_each_flags_default_and_program() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(--[\w-]+)`.*? \| (.*?) \| (both|main|test|crossval) \|", readme, re.MULTILINE)
    parsers = {"main": train_parser(), "test": flags.test_parser(), "crossval": flags.crossval_parser()}
    options = {name: parser._option_string_actions for name, parser in parsers.items()}
    values = {"main": vars(parse_train([])), "test": vars(parse_test([])), "crossval": vars(parse_crossval([])[0])}
    having = {"both": {"main", "test"}, "main": {"main"}, "test": {"test"}, "crossval": set()}
    words = {None: ("–", "all", "`--optim_lr`", "`--reg_weight`"), True: ("on",), False: ("off",)}
    assert len(rows) > 90
    for flag, text, program in rows:
        if flag != "--overwrite":  # which two rows have
            assert {name for name in ("main", "test") if flag in options[name]} == having[program], flag
        first = "main" if program == "both" else program
        value = values[first][options[first][flag].dest]
        if value is None or isinstance(value, bool):
            assert text in words[value], flag
        elif value == []:
            assert text == "–", flag
        elif isinstance(value, str):
            assert text.strip("`") == value, flag
        elif flag == "--fast":  # stands for another one
            assert text == "off"
        else:
            assert float(text.strip("`")) == value, flag
