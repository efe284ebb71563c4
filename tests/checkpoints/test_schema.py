"""Weights files that were manipulated: each ends in one line that names the file, before memory is taken."""

import copy
import json
import pickle
import resource
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.checkpoints.conftest import DATA, DESCRIPTION, script
from tests.conftest import TINY, Run
from utils.checkpoints import load_network
from utils.checkpoints.description import Description, describe
from utils.checkpoints.progress import Progress
from utils.checkpoints.read import read_checkpoint, read_torchscript, read_vit
from utils.checkpoints.resume import StartSettings, initial_state, learner_state, resume_state
from utils.checkpoints.save import add_metadata
from utils.checkpoints.vit_weights import load_vit_weights
from utils.system.errors import DamagedError, InputError

Content = dict[str, Any]
FIRST = "encoder1.layer.conv1.conv.weight"  # (2, 1, 3, 3, 3)
NAN, INF = float("nan"), float("inf")
SCANS = {"training": [["a.nii", "b.nii"]], "validation": [["c.nii", "d.nii"]]}
ANNOTATION = {"ignore": None, "not_annotated": {"training": [[1]], "validation": [[]]}}
RECORDED = {"scans": SCANS, "annotation": ANNOTATION}
FLAGS = {"optim_name": "adamw", "max_epochs": 9}


def whole() -> Content:
    """What a run leaves after a step of its optimizer."""
    torch.manual_seed(1)
    network = DESCRIPTION.build()
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    line = {"epoch": 1, "loss": 1.5, "lr": 1e-4, "seconds": 2.0, "dice": {"mean": 0.5, "organs": {"anterior": None}}}
    progress = Progress(epoch=1, score=0.5, best_score=0.5, best_epoch=1, history=[line])
    learner = learner_state(network, None, optimizer, torch.amp.GradScaler("cpu"))
    return {
        **DESCRIPTION.content(),
        "state_dict": dict(network.state_dict()),
        "epoch": 1,
        "score": 0.5,
        "resume": copy.deepcopy(resume_state(learner, progress, FLAGS, RECORDED)),
    }


WHOLE = whole()
BEST = {name: value for name, value in WHOLE.items() if name != "resume"}


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def with_value(where: str, value: Any) -> Content:
    """The content with another value at a place such as ``network.options.num_heads``."""
    content = WHOLE.copy() if where.startswith("resume") else {**BEST}
    *above, last = where.split("/")
    inner: Any = content
    for key in above:
        inner[key] = inner[key].copy()
        inner = inner[key]
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    return content


MISSING = object()
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
LAUGHS: list[Any] = ["ha"] * 10
for _ in range(12):
    LAUGHS = [LAUGHS] * 10

# where something else stands, what, and a part of the line
SAID: list[tuple[str, Any, str]] = [
    ("format", "2", "format should be a valid integer"),
    ("format", True, "format should be a valid integer"),
    ("format", 0, "format should be greater than or equal to 1"),
    ("format", 4, "was made by a newer version of this program. Update it."),
    ("format", MISSING, "format is missing"),
    ("network", "unetr", "network should be a valid dictionary"),
    ("network", MISSING, "network is missing"),
    ("network/name", 3, "network.name should be a valid string"),
    ("network/name", "../x.py", "was made by a newer version of this program. Update it."),
    ("network/options", [], "network.options should be a valid dictionary"),
    ("network/options", {1: 2}, "network.options.1.[key] should be a valid string"),
    ("network/file", {"name": "a\nb.py", "sha256": "0" * 64}, "network.file.name should be printable"),
    ("network/file", {"name": "a.py", "sha256": "x"}, "network.file.sha256 "),
    ("network/options/num_layers", 10**9, "`num_layers` is not for unetr"),
    ("network/options/hidden_size", 10**8, "`hidden_size` must be at most 16384, not 100000000"),
    ("network/options/hidden_size", 12.0, "`hidden_size` should be a valid integer, not 12.0"),
    ("network/options/mlp_dim", 10**600, "`mlp_dim` must be at most 65536, not 1000"),
    ("network/options/feature_size", 10**6, "`feature_size` must be at most 1024"),
    ("network/options/feature_size", "2", "`feature_size` should be a valid integer, not '2'"),
    ("network/options/num_heads", 0, "`num_heads` must be at least 1, not 0"),
    ("network/options/num_heads", True, "`num_heads` should be a valid integer, not True"),
    ("network/options/in_channels", None, "`in_channels` should be a valid integer, not None"),
    ("network/options/out_channels", 10**7, "`out_channels` must be at most 1024"),
    ("network/options/res_block", 1, "`res_block` should be a valid boolean, not 1"),
    ("network/options/norm_name", ["instance"], "`norm_name` should be a valid string"),
    ("network/options/norm_name", "layer", "`norm_name` must be one of instance, batch, not 'layer'"),
    ("network/options/dropout_rate", NAN, "`dropout_rate` must be at least 0 and below 1, not nan"),
    ("network/options/patch_size", torch.ones(2), "`patch_size` should be a valid integer, not a Tensor"),
    ("network/options/img_size", (16, 16), "`img_size` must be 3 numbers, not (16, 16)"),
    ("network/options/img_size", (16, 16, "32"), "`img_size` must be 3 numbers, not (16, 16, '32')"),
    ("network/options/img_size", (16, 16, 16), "its network and its preprocessing have other windows"),
    ("network/options/spacing", (1.0, 1.0, 0.0), "`spacing` must be three numbers of 0.001 to 1000 mm"),
    ("preprocessing", [], "preprocessing should be a valid dictionary"),
    ("preprocessing", MISSING, "preprocessing is missing"),
    ("preprocessing/intensity", MISSING, "its preprocessing lacks intensity"),
    ("preprocessing/intensities", "ct", "its preprocessing has 'intensities'"),
    ("preprocessing/intensity", "mr", "`intensity` must be one of ct, zscore, not 'mr'"),
    ("preprocessing/spacing", (0.0, 1.0, 2.5), "`spacing` must be three numbers of 0.001 to 1000 mm"),
    ("preprocessing/spacing", (-1.0, 1.0, 2.5), "`spacing` must be three numbers of 0.001 to 1000 mm"),
    ("preprocessing/spacing", (1.0, 1.0, NAN), "`spacing` must be three numbers of 0.001 to 1000 mm"),
    ("preprocessing/spacing", 1.0, "`spacing` must be 3 numbers, not 1.0"),
    ("preprocessing/roi", (1024, 1024, 1024), "`roi` must be at most 67,108,864 voxels in all, not 1024 × 1024"),
    ("preprocessing/roi", (512, 512, 512), "`roi` must be at most 67,108,864 voxels in all, not 512 × 512"),
    ("preprocessing/roi", (16, 16, 0), "`roi` must be three numbers of voxels, not 16 × 16 × 0"),
    ("preprocessing/roi", (16.0, 16.0, 32.0), "`roi` must be 3 numbers, not (16.0, 16.0, 32.0)"),
    ("preprocessing/a_max", -200, "`a_max` -200 must be above `a_min` -175"),
    ("preprocessing/a_min", -INF, "`a_min` and `a_max` must be within ±1e+12"),
    ("preprocessing/b_max", "1", "`b_max` should be a valid number, not '1'"),
    ("preprocessing/orientation", "RAX", "`orientation` must be axis codes such as RAS, not 'RAX'"),
    ("preprocessing/orientation", "RRS", "`orientation` must be axis codes such as RAS, not 'RRS'"),
    ("labels", "abc", "labels should be a valid list"),
    ("labels", [], "labels list should have at least 1 item"),
    ("labels", ["a", "b"], "names 2 labels for 3 classes"),
    ("labels", ["a", "b", "b"], "labels should be distinct"),
    ("labels", ["a", "b", 3], "labels.2 should be a valid string"),
    ("labels", ["a", "b", ""], "labels.2 string should have at least 1 character"),
    ("labels", ["a", "b", "\ud800"], "labels.2 should be "),
    ("labels", LAUGHS, "claims to hold more than the file is long"),
    ("amp", 1, "amp should be a valid boolean"),
    ("flips", "left", "flips should be 'none', 'published', 'anatomical' or 'left_right'"),
    ("epoch", -1, "epoch should be greater than or equal to 0"),
    ("epoch", "7", "epoch should be a valid integer"),
    ("score", "good", "score should be a valid number"),
    ("versions", ["2.13"], "versions should be a valid dictionary"),
    ("command", ENDLESS, "claims to hold more than the file is long"),
    ("command", {"a": 1}, "command should be a valid string"),
    ("state_dict", {}, "holds no weights"),
    ("state_dict", {"weight": 3}, "its weight is no tensor but a int"),
    ("state_dict", {1: torch.ones(2)}, "holds a tensor without a sound name"),
    ("state_dict", {"a\nb": torch.ones(2)}, "holds a tensor without a sound name"),
    (f"state_dict/{FIRST}", torch.full((2, 1, 3, 3, 3), NAN), f"its {FIRST} has numbers that aren't finite"),
    (f"state_dict/{FIRST}", torch.full((2, 1, 3, 3, 3), 1e300, dtype=torch.float64), "has numbers that aren't finite"),
    (f"state_dict/{FIRST}", torch.ones(2, 1, 3, 3, 3, dtype=torch.complex64), "holds complex64, not float32"),
    (f"state_dict/{FIRST}", torch.ones(2, 1, 3, 3, 3, dtype=torch.bool), "holds bool, not float32"),
    (f"state_dict/{FIRST}", torch.ones(2, 1, 3, 3, 3, dtype=torch.int8), "holds int8, not float32"),
    (f"state_dict/{FIRST}", torch.ones(2, 1, 3, 3, 3).to_sparse(), "is a sparse, nested or quantised tensor"),
    (f"state_dict/{FIRST}", torch.ones(2, 1, 3, 3, 3, device="meta"), "has no numbers"),
    (f"state_dict/{FIRST}", torch.ones(1).expand(2, 1, 3, 3, 3), "claims 54 numbers and has fewer"),
    (f"state_dict/{FIRST}", torch.tensor(1.0), f"its {FIRST} has the shape ()"),
    (f"state_dict/{FIRST}", torch.ones(0, 1, 3, 3, 3), f"its {FIRST} has the shape (0, 1, 3, 3, 3)"),
    ("resume", [], "what continues its run: isn't what this program writes"),
    ("resume/optimizer", {}, "optimizer.state is missing"),
    ("resume/scaler", {"scale": -1.0}, "scaler.scale should be greater than 0"),
    ("resume/progress/epoch", -1, "progress.epoch should be greater than or equal to 0"),
    ("resume/progress/unfinished", None, "progress.unfinished should be a valid dictionary"),
    ("resume/progress/unfinished/scans", 4, "progress.unfinished should have losses if there are scans"),
    ("resume/progress/history", [{"epoch": 1}], "progress.history.0.loss is missing"),
    ("resume/progress/best_score", "x", "progress.best_score should be a valid number"),
    ("resume/flags", {}, "flags should have an optim_name"),
    ("resume/flags/max_epochs", "9", "flags should have a whole number as max_epochs"),
    ("resume/scans", {"training": []}, "scans.validation is missing"),
    ("resume/scans/training", [[]], "scans.training.0 list should have at least 1 item"),
    ("resume/annotation", {"ignore": 255}, "annotation.not_annotated is missing"),
    ("resume/trained", {"weight": 3}, "trained.weight should be an instance of Tensor"),
]


@pytest.mark.parametrize(("where", "value", "words"), SAID, ids=[f"{i}-{one[0]}" for i, one in enumerate(SAID)])
def test_a_checkpoint_that_says_what_cannot_be_is_one_line(where: str, value: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.pt", with_value(where, value))
    with pytest.raises(InputError) as error:
        load_network(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert message.isprintable()
    assert len(message) < 1000


def test_what_is_manipulated_above_is_sound_by_itself(tmp_path: Path) -> None:
    network, description = load_network(write(tmp_path / "model.pt", WHOLE))
    assert description == DESCRIPTION
    assert torch.equal(network.state_dict()[FIRST], WHOLE["state_dict"][FIRST])


def go_on(path: Path) -> None:
    """Continue a run as main.py does."""
    network = DESCRIPTION.build()
    optimizer = torch.optim.AdamW(network.parameters())
    start = StartSettings(settings=FLAGS, allow_change=["json_list"])
    state = initial_state(start, path, DESCRIPTION, DATA, network)
    state.restore(network, None, optimizer, torch.amp.GradScaler("cpu"))


KEPT: list[tuple[str, Any, str]] = [
    ("0", {"step": 1}, "parameter 0 has 'step', not step, exp_avg, exp_avg_sq"),
    ("0", {}, "parameter 0 has nothing, not step"),
    ("0/exp_avg", torch.ones(3), "has a exp_avg of (3,) in torch.float32"),
    ("0/exp_avg", torch.ones(1, 1).expand(12, 4096), "has a exp_avg that claims"),
    ("0/exp_avg", [1.0], "has a exp_avg that is no tensor but a list"),
    ("0/step", torch.tensor(NAN), "has a step that is no number of a run"),
    ("0/step", "3", "has a step that is no tensor but a str"),
    ("0/step", torch.tensor(3), "has a step of () in torch.int64"),
]


@pytest.mark.parametrize(("where", "value", "words"), KEPT, ids=[one[2] for one in KEPT])
def test_an_optimizer_that_cannot_go_on_is_one_line(where: str, value: Any, words: str, tmp_path: Path) -> None:
    content = copy.deepcopy(WHOLE)
    kept = content["resume"]["optimizer"]["state"]
    number, _, name = where.partition("/")
    if name:
        kept[int(number)][name] = value
    else:
        kept[int(number)] = value
    with pytest.raises(DamagedError) as error:
        go_on(write(tmp_path / "model.pt", content))
    assert str(error.value).startswith(f"{tmp_path / 'model.pt'}: ")
    assert words in str(error.value)
    assert str(error.value).isprintable()


def test_an_optimizer_of_other_parameters_or_weights_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    go_on(write(path, WHOLE))  # which is sound
    content = copy.deepcopy(WHOLE)
    kept = content["resume"]["optimizer"]["state"]
    kept[len(kept)] = kept[0]
    with pytest.raises(DamagedError, match=r"model\.pt: what continues .*parameter \d+ isn't there"):
        go_on(write(path, content))
    negative = copy.deepcopy(WHOLE)
    negative["resume"]["optimizer"]["state"][0]["exp_avg_sq"] -= 1
    with pytest.raises(DamagedError, match="has a exp_avg_sq that is no number of a run"):
        go_on(write(path, negative))
    for trained, words in (
        ({"x": torch.ones(1)}, "is missing, unknown or of another shape"),
        ({**WHOLE["state_dict"], FIRST: torch.full((2, 1, 3, 3, 3), INF)}, f"its {FIRST} has numbers that aren't"),
    ):
        with pytest.raises(DamagedError, match=words):
            go_on(write(path, with_value("resume/trained", trained)))


# --- files that claim more than they are long


def rewrite(path: Path, change: Callable[[zipfile.ZipInfo, bytes], tuple[bytes, int]]) -> None:
    """Write a zip file anew, each member with other bytes or another compression."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in members:
            new, method = change(info, data)
            archive.writestr(info.filename, new, method)


def compressed_zeros(path: Path) -> None:
    """200 MB of zeros in 0.2 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        numbers = pickle_of_a_tensor(50 * 10**6)
        archive.writestr("model/data.pkl", numbers, zipfile.ZIP_STORED)
        with archive.open("model/data/0", "w") as member:
            for _ in range(200):
                member.write(bytes(10**6))
        archive.writestr("model/version", "3\n", zipfile.ZIP_STORED)


def pickle_of_a_tensor(count: int) -> bytes:
    """``{"weight": …}`` as torch.save writes it, of ``count`` float32 in the member data/0."""
    number = b"J" + struct.pack("<i", count)
    return (
        b"\x80\x02}X\x06\x00\x00\x00weightctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number + b"tQK\x00" + number + b"\x85K\x01"
        b"\x85\x89ccollections\nOrderedDict\n)RtRs."
    )


def compressed_pickle(path: Path) -> None:
    write(path, WHOLE)
    rewrite(path, lambda info, data: (data, zipfile.ZIP_DEFLATED if "data.pkl" in info.filename else 0))


def compressed_otherwise(path: Path) -> None:
    write(path, WHOLE)
    rewrite(path, lambda info, data: (data, zipfile.ZIP_BZIP2))


def claiming(path: Path) -> None:
    """The central directory says of a stored member that it is 2 GB long."""
    write(path, WHOLE)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<II", 2 * 10**9, 2 * 10**9)
    path.write_bytes(content)


def claiming_alone(path: Path) -> None:
    write(path, WHOLE)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 2 * 10**9)
    path.write_bytes(content)


def overlapping(path: Path) -> None:
    """Two members are at one place."""
    write(path, WHOLE)
    content = bytearray(path.read_bytes())
    first = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", first + 4)
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    path.write_bytes(content)


def twice(path: Path) -> None:
    write(path, WHOLE)
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"x")


def more_numbers_than_stored(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", pickle_of_a_tensor(2 * 10**8)), ("data/0", bytes(400)), ("version", b"3\n")):
            archive.writestr(f"model/{name}", data)


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def legacy(path: Path, numel: int) -> None:
    """A file as torch before 1.6 wrote it, whose weight claims other numbers than it has."""
    torch.save({"weight": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes().replace(b"M\xe8\x03", b"J" + struct.pack("<i", numel))
    at = content.rindex(struct.pack("<q", 1000))
    path.write_bytes(content[:at] + struct.pack("<q", numel) + content[at + 8 :])


def claiming_safetensors(path: Path) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(400))


def long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def described_by(text: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write(path, WHOLE["state_dict"])
        add_metadata(path, text)

    return make


BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "compressed zeros": (compressed_zeros, "it has model/data/0 compressed, to 200,000,000 bytes"),
    "a compressed pickle": (compressed_pickle, "it has model/data.pkl compressed"),
    "another compression": (compressed_otherwise, "compressed, to"),
    "a member longer than the file": (claiming, "it claims 2,000,000,000 bytes for model/"),
    "a stored member of two lengths": (claiming_alone, "it claims 2,000,000,000 bytes for model/"),
    "overlapping members": (overlapping, "more than it has there"),
    "a member twice": (twice, "it has model/data.pkl twice"),
    "more numbers than stored": (more_numbers_than_stored, "it is damaged"),
    "a call for any memory": (
        lambda path: write(path, {"state_dict": {"weight": _Call(bytearray, 2 * 10**9)}}),
        "it calls bytearray, which could take any memory",
    ),
    "a text that doubles": (
        lambda path: write(path, {"state_dict": {"weight": _Call(__import__("_codecs").encode, b"x", "hex_codec")}}),
        "it encodes text as hex_codec, which could take any memory",
    ),
    "a tensor of nothing": (
        lambda path: write(path, {"state_dict": {"weight": _Call(torch.FloatTensor, 10**8)}}),
        "claims to hold more than the file is long",
    ),
    "a scalar of any size": (
        lambda path: write(path, {"best_acc": np.void(bytes(10)), "state_dict": WHOLE["state_dict"]}),
        "it is damaged, or of another kind",
    ),
    "a sparse tensor of any size": (
        lambda path: write(path, {"weight": torch.sparse_coo_tensor(torch.zeros(1, 0), [], (10**12,))}),
        "its weight is a sparse, nested or quantised tensor",
    ),
    "an old file that claims 8 GB": (partial(legacy, numel=2 * 10**9), "it is damaged"),
    "an unetr.json that is no JSON": (described_by("{"), "its unetr.json isn't what this program writes"),
    "an unetr.json that is nested": (described_by("[" * 10**5), "its unetr.json isn't what this program writes"),
    "an unetr.json of something else": (described_by('{"a": 1}'), "its unetr.json isn't what this program writes"),
    "an unetr.json of 2 MB": (described_by('"' + " " * 2 * 2**20 + '"'), "or it is longer than 1,048,576 bytes"),
    "an unetr.json of other labels": (
        described_by(json.dumps({**DESCRIPTION.content(), "labels": "abc"})),
        "labels should be a valid list",
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_file_that_claims_more_than_it_has_is_refused_before_memory_is_taken(kind: str, tmp_path: Path) -> None:
    make, words = BOMBS[kind]
    path = tmp_path / "model.pt"
    make(path)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(DamagedError) as error:
        load_network(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB
    assert time.monotonic() - start < 5
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("make", [claiming_safetensors, long_header])
def test_safetensors_that_claim_more_than_they_have_are_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    make(path)
    for read in (read_checkpoint, read_vit):
        with pytest.raises(DamagedError, match=r"model\.safetensors: can't be read as weights: it is damaged"):
            read(path)


@pytest.mark.parametrize("kind", [kind for kind in BOMBS if kind.startswith("an unetr.json")])
def test_what_safetensors_say_of_themselves_is_checked(kind: str, tmp_path: Path) -> None:
    make, words = BOMBS[kind]
    make(tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        text = archive.read("model/extra/unetr.json").decode()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(WHOLE["state_dict"], path, {"unetr.json": text})
    for read in (read_checkpoint, read_vit):
        with pytest.raises(DamagedError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ")
        assert words in str(error.value)
        assert str(error.value).isprintable()


def test_safetensors_are_read_as_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(WHOLE["state_dict"], path)
    content = read_checkpoint(path)
    assert content.keys() == {"state_dict"}
    assert torch.equal(content["state_dict"][FIRST], WHOLE["state_dict"][FIRST])


def test_torchscript_may_compress_its_code_up_to_a_total(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    script(DESCRIPTION.build(), path)
    read_torchscript(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        top = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{top}/code/more.py", bytes(17 * 2**20))
    with pytest.raises(DamagedError, match=r"script\.pt: .* bytes of compressed code"):
        read_torchscript(path)


# --- networks from elsewhere


class Other(nn.Module):
    """Gives no logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, volume: Tensor) -> Any:
        logits = (volume + self.bias).expand(-1, 3, -1, -1, -1)
        if self.kind == "tuple":
            return logits, logits
        if self.kind == "dict":
            return {"out": logits}
        if self.kind == "nan":
            return logits / 0
        return logits.argmax(1, keepdim=True).expand(-1, 3, -1, -1, -1)


OUTPUTS = {
    "tuple": "gives a tuple for a window",
    "dict": "gives a dict for a window",
    "nan": "gives numbers that aren't finite for a window",
    "int": "gives numbers of int64 for a window",
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_torchscript_that_gives_no_logits_is_one_line(
    kind: str, in_tmp: Path, phantoms: Path, run_test: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(Other(kind), torch.zeros(1, 1, 16, 16, 16), strict=False, check_trace=False).save("odd.pt")
    scan = next(phantoms.rglob("*.nii.gz"))
    flags = ["--saved_checkpoint=torchscript", "--pretrained_dir=.", "--pretrained_model_name=odd.pt"]
    with pytest.raises(SystemExit) as stop:
        run_test(["--input", str(scan), "--output_dir=out", "--workers=0", *TINY, "--out_channels=3", *flags])
    assert stop.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith("error: odd.pt: ")
    assert OUTPUTS[kind] in line
    assert line.count("\n") == 1


def test_training_from_torchscript_that_gives_no_logits_is_one_line(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, module in DESCRIPTION.build().named_children():
                self.add_module(name, module)

        def forward(self, volume: Tensor) -> tuple[Tensor, Tensor]:
            return volume, volume

    path = tmp_path / "script.pt"
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(Both(), torch.zeros(1, 1, 16, 16, 32)).save(str(path))
    start = StartSettings(weights=path, torchscript=True)
    with pytest.raises(InputError, match=r"script\.pt: gives a tuple for a window of \(1, 1, 16, 16, 32\), not logits"):
        initial_state(start, None, DESCRIPTION, DATA, DESCRIPTION.build())


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(12, 4096, dtype=torch.complex64), "holds torch.complex64, not floats"),
        (torch.ones(12, 4096, dtype=torch.int8), "holds torch.int8, not floats"),
        (torch.ones(12, 4096).to_sparse(), "is a sparse, nested or quantised tensor"),
        (torch.ones(1).expand(12, 4096), "claims 49,152 numbers and has fewer"),
        (torch.ones(12, 0), "(12, 0) holds torch.float32"),
    ],
)
def test_a_vit_of_other_numbers_is_one_line(tensor: Tensor, words: str, tmp_path: Path) -> None:
    vit = {name.removeprefix("vit."): tensor for name, tensor in WHOLE["state_dict"].items() if name.startswith("vit.")}
    patches = next(name for name in vit if name.endswith("embeddings.1.weight"))
    path = write(tmp_path / "vit.pth", {"model": {**vit, patches: tensor}})
    with pytest.raises(InputError) as error:
        load_vit_weights(DESCRIPTION.build(), read_vit(path), str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)


# --- through the programs

PROGRAMS: dict[str, tuple[str, Any, str]] = {
    "a window of 1024³": ("preprocessing/roi", (1024,) * 3, "--roi_x, --roi_y, --roi_z must be at most 67,108,864"),
    "no spacing": ("preprocessing/spacing", (0, 0, 0), "--space_x, --space_y, --space_z must be three numbers of"),
    "labels that are a word": ("labels", "abc", "labels should be a valid list"),
    "weights that aren't finite": (f"state_dict/{FIRST}", torch.full((2, 1, 3, 3, 3), INF), "numbers that aren't"),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_the_programs_end_in_one_line(
    kind: str, in_tmp: Path, phantoms: Path, run_main: Run, run_test: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    where, value, words = PROGRAMS[kind]
    write(Path("model.pt"), with_value(where, value))
    flags = [f"--data_dir={phantoms}", "--workers=0", "--pretrained_dir=.", "--pretrained_model_name=model.pt"]
    network = [f"--{name}={DESCRIPTION.options[name]}" for name in ("feature_size", "hidden_size", "mlp_dim")]
    network += ["--num_heads=2", "--out_channels=3", "--roi_x=16", "--roi_y=16", "--roi_z=32"]
    label_free = Path("list.json")
    files = sorted(str(path) for path in phantoms.rglob("*.nii.gz"))[:2]
    entries = [{"image": files[0], "label": files[1]}]
    label_free.write_text(json.dumps({"training": entries, "validation": entries}))
    for run, more in (
        (run_test, ["--input", files[0], "--output_dir", "out"]),
        (run_main, ["--resume_ckpt", "--skip_data_check", f"--json_list={label_free.resolve()}", *network]),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run([*flags, *more] if run is run_main else [*flags[1:], *more])
        line = capsys.readouterr().err
        assert stop.value.code == 1, line
        assert line.startswith("error: model.pt: "), line
        assert words in line, line
        assert line.count("\n") == 1, line


# --- any value anywhere

SAYS = {name: value for name, value in WHOLE.items() if name not in ("state_dict", "resume")}
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value of nested dicts and lists is."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    return [*([above] if above else []), *(place for key, one in inside for place in places(one, (*above, key)))]


def refusal(read: Callable[[], object]) -> str | None:
    """The line that refuses a file; None if it is read."""
    try:
        read()
    except InputError as error:
        return str(error)
    return None


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_anywhere_is_refused_or_makes_a_sound_description(data: st.DataObject) -> None:
    content: Any = json.loads(json.dumps(SAYS))
    *above, last = data.draw(st.sampled_from(places(content)))
    inner = content
    for key in above:
        inner = inner[key]
    inner[last] = data.draw(ODD)
    found: list[Description | None] = []
    line = refusal(lambda: found.append(describe(content, "x.pt")))
    if line is not None:
        assert line.startswith("x.pt: ")
        assert line.isprintable()
        return
    (description,) = found
    assert description is not None
    again = describe(json.loads(json.dumps(description.content())))
    assert again == description
    with torch.device("meta"):
        description.build()


RUN = {name: value for name, value in WHOLE["resume"].items() if name not in ("optimizer",)}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_what_continues_a_run_is_refused_or_continued(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = {**WHOLE, "resume": {**json.loads(json.dumps(RUN)), "optimizer": WHOLE["resume"]["optimizer"]}}
    *above, last = data.draw(st.sampled_from(places({**content["resume"], "optimizer": None})))
    inner: Any = content["resume"]
    for key in above:
        inner = inner[key]
    inner[last] = data.draw(ODD)
    path = tmp_path_factory.getbasetemp() / "any.pt"
    try:
        write(path, content)
    except (OverflowError, pickle.PicklingError, UnicodeEncodeError):
        return  # torch.save can't write it
    line = refusal(partial(go_on, path))
    assert line is None or (line.startswith(f"{path}: ") and line.isprintable())
