"""The command line that users of the 2021 repository know, flag by flag."""

import argparse
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.networks.test_registry import HEAD, NETWORK
from utils import write_flags
from utils.config import flags
from utils.config.flags import parse_crossval, parse_test, parse_train, recorded_flags, train_parser
from utils.config.settings import description_from_args
from utils.data.data_list import unlisted

# name, default in 2021, in main.py (d: where the data don't tell), in test.py; what a checkpoint knows has no default
# in test.py here
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
in_channels 1 dT
out_channels 14 dT
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
    if "d" in programs:
        assert vars(parse_train([]))[name] is None
        assert str(description_from_args(parse_train([]), unlisted(None)).options[name]) == default
    if "t" in programs:
        value = vars(parse_test([]))[name]
        assert str(value[0] if isinstance(value, list) else value) == default  # test.py takes several weights files
    if "T" in programs:
        assert vars(parse_test([]))[name] is None
        assert name in recorded_flags()


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
    args = parse_train(["--intensity=zscore", "--space_z=3.5", "--roi_y=64", "--no-res_block"])
    settings = description_from_args(args, unlisted(None)).settings()
    flags = {name: getattr(args, name) for name in recorded_flags() if name != "num_layers"}  # of primus alone
    assert settings == {**flags, "in_channels": 1, "out_channels": 14}
    assert (settings["intensity"], settings["space_z"], settings["roi_y"], settings["res_block"]) == (
        "zscore", 3.5, 64, False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--feature_size 0", "argument --feature_size: must be at least 1, not 0"),
        ("--roi_x 90", "--roi_x, --roi_y, --roi_z must be multiples of 16 for unetr, not 90 × 96 × 96"),
        ("--optim_name adagrad", "argument --optim_name: invalid choice: 'adagrad'"),
        ("--lrschedule step", "argument --lrschedule: invalid choice: 'step'"),
        ("--model_name vnet", "or a .py file that defines one, not 'vnet'"),
        ("--optim_lr fast", "argument --optim_lr: must be a number, not 'fast'"),
        ("--optim_lr nan", "argument --optim_lr: must be above 0, not nan"),
        ("--space_z 0", "argument --space_z: must be above 0, not 0"),
        ("--RandFlipd_prob 1.5", "argument --RandFlipd_prob: must be at least 0 and at most 1, not 1.5"),
        ("--seed 99999999999999999999", "argument --seed: must be at least 0 and at most 9.22337e+18"),
        ("--infer_overlap 1", "argument --infer_overlap: must be at least 0 and below 1, not 1"),
        ("--ema_decay 1", "argument --ema_decay: must be above 0 and below 1, not 1"),
        ("--drop_path_rate 1", "argument --drop_path_rate: must be at least 0 and below 1, not 1.0"),
        ("--model_name segresnet --vit_lr 1", "--vit_lr is not for segresnet; leave it out"),
        ("--patch_size 4", "argument --patch_size: must be one of 16, 8, not 4"),
        ("--patch_size 8 --roi_x 20", "--roi_x, --roi_y, --roi_z must be multiples of 8 for unetr, not 20 × 96 × 96"),
        ("--ema_decay 0", "argument --ema_decay: must be above 0 and below 1, not 0"),
        ("--clip_grad_norm 0", "argument --clip_grad_norm: must be above 0, not 0"),
        ("--num_heads 5", "--num_heads 5 must divide --hidden_size 768"),
        ("--a_min 300", "--a_max 250 must be above --a_min 300"),
        ("--resume_ckpt --resume_jit", "--resume_ckpt and --resume_jit exclude each other"),
        ("--vit_weights a --checkpoint b", "--vit_weights and --checkpoint exclude each other"),
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


@pytest.mark.parametrize("name", ["", ".", "..", "../elsewhere", "a/../.."])
def test_a_run_without_a_folder_of_its_own_below_runs_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_train([f"--logdir={name}"])
    assert f"argument --logdir: must be a name below runs/, not {name!r}" in capsys.readouterr().err


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


@pytest.fixture
def bare_network(tmp_path: Path) -> str:
    """The file of a network that declares nothing of what it can do but its output layers."""
    path = tmp_path / "mine.py"
    path.write_text(HEAD + NETWORK.format(name="mine", suffix=""))
    return str(path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "--activation_checkpointing",
            "--activation_checkpointing: mine can't be recomputed, since its class declares no",
        ),
        ("--compile", "--compile: mine can't be compiled, since its class declares no “blocks”"),
        (
            "--cuda_graph",
            "--cuda_graph: mine can't be recorded as a CUDA graph, since its class declares no “",
        ),
        ("--vit_weights=vit.pt", "--vit_weights: mine has no ViT; leave it out"),
        ("--vit_lr=1", "--vit_lr is not for mine; leave it out"),
        ("--mlp_dim=1", "--mlp_dim is not for mine; leave it out"),
        ("--width=0", "argument --width: must be at least 1, not 0"),
        ("--rate=fast", "argument --rate: must be a number, not 'fast'"),
        ("--roi_y=5", "--roi_x, --roi_y, --roi_z must be multiples of 4 × 2 × 1 for mine, not 96 × 5 × 96"),
    ],
)
def test_what_a_network_can_not_do_is_an_error(
    bare_network: str, given: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_train([f"--model_name={bare_network}", given])
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_flags_of_a_network_of_ones_own(bare_network: str) -> None:
    args = parse_train([f"--model_name={bare_network}", "--width=3", "--wide"])
    assert (args.width, args.rate, args.wide) == (3, 0.5, True)
    args = parse_test([f"--model_name={bare_network}", "--rate=0.25", "--no-wide"])
    assert (args.width, args.rate, args.wide) == (None, 0.25, False)  # which the checkpoint knows, but for those given


@pytest.mark.parametrize("field", ["data_dir", "optim_lr", "vit_lr", "help", "folds", "fast", "split"])
def test_a_field_that_is_a_flag_of_a_program_is_refused_by_all(
    bare_network: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one of test.py by main.py: what is trained can be tested."""
    Path(bare_network).write_text(Path(bare_network).read_text().replace("rate: float", f"{field}: float"))
    for parse in (parse_train, parse_test, parse_crossval):
        with pytest.raises(SystemExit):
            parse([f"--model_name={bare_network}"])
        message = capsys.readouterr().err
        assert f"--model_name {bare_network}: its field {field} is a flag of ours. Rename it (" in message
        assert message.count("\n") == 1


@pytest.mark.parametrize("size", [16, 24, 321])
def test_test_py_takes_the_settings_of_any_network(size: int) -> None:
    """Whose bounds differ: what the network can't be built from is found once it is known."""
    assert parse_test([f"--feature_size={size}"]).feature_size == size


def test_fast_is_a_smaller_overlap(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_test([]).infer_overlap == 0.5
    assert parse_test(["--fast"]).infer_overlap == 0.25
    with pytest.raises(SystemExit):
        parse_test(["--fast", "--infer_overlap=0.7"])
    assert "argument --infer_overlap: not allowed with argument --fast" in capsys.readouterr().err


def test_the_page_of_flags_is_what_the_parsers_say() -> None:
    """Else run ``python -m utils.write_flags``."""
    assert write_flags.PAGE.read_text(encoding="utf-8") == write_flags.page()
    assert write_flags.PAGE == REPOSITORY / "docs" / "flags.md"


def test_the_page_of_flags_has_every_flag_with_its_default() -> None:
    rows = re.findall(r"^\| (`--.*?`) \| (.*?) \| (.+) \|$", write_flags.page(), re.MULTILINE)
    # main.py's come first, with the defaults of unetr
    defaults = {flag: default for names, default, _ in reversed(rows) for flag in re.findall(r"`(--[\w-]+)`", names)}
    for parser in (train_parser(), flags.test_parser(None), flags.crossval_parser()):
        actions = parser._option_string_actions
        shown = {flag for flag in actions if flag.startswith("--") and actions[flag].help != argparse.SUPPRESS}
        assert shown - {"--help", "--help-all"} <= defaults.keys(), sorted(shown - defaults.keys())
    for line in FLAGS_OF_2021.split("\n")[1:-1]:
        name, default, programs = line.split()
        if "m" in programs:
            flag = f"--{name.replace('dist_', 'dist-')}"
            assert defaults[flag] == ("" if default in ("None", "False") else f"`{default}`"), flag


def test_a_tilde_is_the_users_home_also_behind_an_equals_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    args = parse_train(["--data_dir=~/scans", "--logdir=~/runs/a", "--cache_dir=~/cache", "--model_name=unetr"])
    assert (args.data_dir, args.logdir, args.cache_dir) == ("/home/ada/scans", "/home/ada/runs/a", "/home/ada/cache")
    assert parse_test(["--input", "~/a", "b", "--output_dir=~/out"]).input == ["/home/ada/a", "b"]


def test_a_flag_that_takes_several_may_be_given_several_times() -> None:
    args = parse_test(["--input", "a", "--input", "b", "c", "--output_dir", "o"])
    assert args.input == ["a", "b", "c"]
    weights = ["--pretrained_model_name", "x.pt", "--pretrained_model_name", "y.pt"]
    assert parse_test(weights).pretrained_model_name == ["y.pt"]  # as for main.py, where it is one file
    assert parse_crossval(["--folds", "0", "--folds", "2"])[0].folds == [0, 2]


@pytest.mark.parametrize(("text", "value"), [("-1e3", -1000), ("-.5", -0.5), ("-1.5E+2", -150), ("-175", -175)])
def test_a_negative_number_is_no_flag(text: str, value: float) -> None:
    assert parse_train(["--a_min", text]).a_min == value


@pytest.mark.parametrize("flag", ["--data_dir", "--cache_dir", "--json_list", "--checkpoint", "--pretrained_dir"])
def test_an_empty_path_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As an unset variable of the shell gives it."""
    with pytest.raises(SystemExit):
        parse_train([f"{flag}="])
    assert f"argument {flag}: names no file or folder" in capsys.readouterr().err


def test_a_name_that_no_file_system_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_train([f"--logdir={'é' * 128}"])
    assert "argument --logdir: must have no part of more than 255 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "idle"),
    [
        ("--intensity zscore --a_min -100 --b_max 2", {"--intensity zscore": ["--a_min", "--b_max"]}),
        ("--momentum 0.5", {"--optim_name adamw": ["--momentum"]}),
        ("--optim_name sgd --momentum 0.9 --betas 0.8 0.9", {"--optim_name sgd": ["--betas"]}),
        ("--lrschedule constant --warmup_epochs 5", {"--lrschedule constant": ["--warmup_epochs"]}),
        ("--a_min -100 --betas 0.8 0.9 --warmup_epochs 5", {}),
        ("--intensity zscore", {}),
    ],
)
def test_flags_that_do_nothing_are_told(given: str, idle: dict[str, list[str]]) -> None:
    assert flags.idle_in_training(parse_train(given.split())) == idle
