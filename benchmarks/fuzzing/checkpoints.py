"""Checkpoints whose description, weights, pickle or archive were changed."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from benchmarks.fuzzing import nested
from benchmarks.fuzzing.kind import EPOCHS, TESTING, TRAINING, Input, Single
from benchmarks.fuzzing.mutant import Content, Folder, Link, Mutant, Pipe, with_bytes_changed
from benchmarks.fuzzing.sandbox import Command, Sandbox
from utils.checkpoints.description import METADATA

WEIGHTS = "weights"  # the folder below the sandbox
COUNTS = ("network", "preprocessing", "labels", "flips", "format", "amp", "resume")  # what a network is built from
NO_MATTER = {"command", "score", "versions"}  # what no mask follows from
BOMB = 400 << 20  # bytes that a member of the archive unpacks to
Checkpoint = dict[str, Any]


class Checkpoints(Single):
    """Checkpoints for ``test.py``, for ``main.py`` that starts from them or goes on, and for ``utils.export``."""

    name, share = "checkpoints", 10

    def make(self, random: Random, sandbox: Sandbox) -> tuple[Input, Command]:
        """Write a checkpoint beside the sound scan, and say what reads it."""
        goes_on = random.random() < 0.3
        source = self.workplace.latest if goes_on or random.random() < 0.2 else self.workplace.model
        content = torch.load(source, weights_only=True)
        what, made, harmless = random.choices(_WAYS, _SHARES)[0](random, content)
        name = "model_final.pt" if goes_on else "model.pt"
        Mutant(what, {name: made}).write(sandbox.folder / WEIGHTS)
        scan = self.workplace.data / "imagesTr" / "sound.nii.gz"
        reader = "main" if goes_on else random.choice(("test", "test", "test", "start", "export"))
        weights = [f"--pretrained_dir={WEIGHTS}", f"--pretrained_model_name={name}"]
        training = [*TRAINING, f"--data_dir={self.workplace.data}", "--logdir=run"]
        match reader:
            case "test":
                more = [
                    flag for flag in ("--one_file_per_organ", "--save_probabilities", "--tta") if random.random() < 0.3
                ]
                command = Command("test.py", [*TESTING, *weights, *more, "--input", str(scan)])
                harmless = harmless and "--tta" not in more  # whose average is another
            case "start":
                command = Command(
                    "main.py",
                    [*training, "--max_epochs=1", "--val_every=1", "--resume_ckpt", *weights],
                    writes=("runs",),
                )
            case "export":
                form = random.choice(("state_dict", "torchscript"))
                command = Command(
                    "utils.export", [f"{WEIGHTS}/{name}", f"--format={form}", "--output=out/exported.pt"], ("out",)
                )
                sandbox.out.mkdir()
            case _:
                epochs = [f"--max_epochs={EPOCHS + 1}", f"--val_every={EPOCHS}"]
                command = Command("main.py", [*training, f"--checkpoint={WEIGHTS}/{name}", *epochs], writes=("runs",))
        return Input(f"{what}, for {reader}", harmless), command


def saved(content: Any, **options: Any) -> bytes:
    """What ``torch.save`` writes."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def _description(random: Random, content: Checkpoint) -> tuple[str, Content, bool]:
    """Change what a checkpoint says beside its weights."""
    what, touched = [], set()
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        keys = [key for key in content if key != "state_dict"]
        key = random.choice([*(key for key in keys if key in COUNTS for _ in range(3)), *keys])
        part = {key: content.pop(key)}
        what.append(nested.change(random, part, _VALUES))
        content |= part
        touched.add(key)
    return f"description: {'; '.join(what)}", saved(content), touched <= NO_MATTER


def _weights(random: Random, content: Checkpoint) -> tuple[str, Content, bool]:
    """Change the weights."""
    state = content["state_dict"] = dict(content["state_dict"])
    name = random.choice(list(state))
    some = [name] if random.random() < 0.7 else list(state)
    kind, change = random.choice(_TENSORS)
    for key in some:
        try:
            state[key] = change(state[key])
        except (RuntimeError, TypeError):  # a tensor that this can't be done with stays as it is
            continue
    match random.randrange(6):
        case 0:
            kind = f"{kind}, and one is gone"
            state.pop(random.choice(list(state)))
        case 1:
            kind = f"{kind}, and another one"
            state[random.choice(("extra", "", "../../victim/made", "module." + name, "%s"))] = torch.zeros(3)
        case 2 if random.random() < 0.3:
            kind = f"{kind}, and a name that is none"
            state[random.choice((1, None, (1, 2), b"name"))] = torch.zeros(3)
    if random.random() < 0.2:
        return f"bare weights, {len(some)} of them {kind}", saved(state), False
    return f"weights, {len(some)} of them {kind}", saved(content), False


def _bytes(random: Random, content: Checkpoint) -> tuple[str, Content, bool]:
    """Damage the bytes of the file, in the present layout or that of old versions of torch."""
    new = random.random() < 0.7
    data = saved(content, _use_new_zipfile_serialization=new)
    what, data = with_bytes_changed(random, data, end=None if new or random.random() < 0.5 else 500)
    return f"{'' if new else 'old layout, '}{what}", data, False


def _archive(random: Random, content: Checkpoint) -> tuple[str, Content, bool]:
    """Change the members of the archive that a checkpoint is."""
    with zipfile.ZipFile(io.BytesIO(saved(content))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    top = next(iter(members)).split("/")[0]
    pickled, extra = f"{top}/data.pkl", f"{top}/extra/{METADATA}"
    name = random.choice(list(members))
    packed: tuple[str, ...] = ()
    match random.randrange(12):
        case 0:
            what, packed = "all members packed", tuple(members)
        case 1:
            what, packed = f"{name} packed", (name,)
        case 2:
            what, packed, members[name] = f"{name} of {BOMB} packed zeros", (name,), bytes(BOMB)
        case 3:
            what, packed, members[extra] = f"{extra} of {BOMB} packed zeros", (extra,), bytes(BOMB)
        case 4:
            what = f"no {name}"
            del members[name]
        case 5:
            other = random.choice(
                ("../../victim/made", "/etc/passwd", "x", "archive/data.pkl", f"{top}/../data.pkl", "\0")
            )
            what = f"{name} called {other!r}"
            members[other] = members.pop(name)
        case 6:
            what, members[name] = f"half of {name}", members[name][: len(members[name]) // 2]
        case 7:
            what, members[name] = f"{name} is empty", b""
        case 8:
            what, members[f"{top}/byteorder"] = "another byte order", random.choice((b"big", b"middle", b""))
        case 9:
            odd = random.choice(_DESCRIPTIONS)
            what, members[extra] = f"a description {odd[:40]!r}", odd
            if random.random() < 0.7:  # which is read with bare weights alone
                return _with_extra(content, odd)
        case _:
            damaged, members[pickled] = with_bytes_changed(random, members[pickled])
            what = f"data.pkl: {damaged}"
    return f"archive: {what}", _archived(members, packed), False


def _with_extra(content: Checkpoint, description: bytes) -> tuple[str, Content, bool]:
    with zipfile.ZipFile(stream := io.BytesIO(saved(content["state_dict"])), "a") as archive:
        top = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{top}/extra/{METADATA}", description)
    return f"bare weights with a description {description[:40]!r}", stream.getvalue(), False


def _archived(members: dict[str, bytes], packed: tuple[str, ...]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            way = zipfile.ZIP_DEFLATED if name in packed else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), data, way, compresslevel=1)
    return stream.getvalue()


class _Code:
    """Something whose pickle runs code."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.system, ("touch victim/made",)


def _code(random: Random, content: Checkpoint) -> tuple[str, Content, bool]:
    """Put code into the file."""
    where = random.choice(("format", "labels", "extra", "state_dict"))
    if where == "state_dict":
        content["state_dict"] = {**content["state_dict"], "extra": _Code()}
    else:
        content[where] = _Code()
    if random.random() < 0.3:
        return f"code at {where}, in a plain pickle", pickle.dumps({"state_dict": {}, where: _Code()}), False
    return f"code at {where}", saved(content, _use_new_zipfile_serialization=random.random() < 0.7), False


def _other(random: Random, content: Checkpoint) -> tuple[str, Content, bool]:
    """Something else in place of a checkpoint."""
    things: tuple[tuple[str, Content], ...] = (
        ("a pipe", Pipe()), ("a folder", Folder()), ("a link to itself", Link("model.pt")), ("text", b"hello\n"),
        ("zeros without end", Link("/dev/zero")), ("an empty file", b""), ("noise", random.randbytes(5000)),
        ("a list", saved([1, 2])), ("a tensor", saved(torch.zeros(3))), ("nothing", saved(None)),
        ("an empty dict", saved({})), ("no weights", saved({**content, "state_dict": {}})),
        ("weights that are a list", saved({**content, "state_dict": []})), ("TorchScript", _script()),
        ("deeply nested", saved({**content, "labels": nested.nest(300)})), ("an empty archive", _archived({}, ())),
        ("a pickle cut off", pickle.dumps(content)[:900]),
    )  # fmt: skip
    what, made = random.choice(things)
    return what, made, False


def _script() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Conv3d(1, 3, 1)), stream)
    return stream.getvalue()


_WAYS = (_description, _weights, _bytes, _archive, _code, _other)
_SHARES = (50, 15, 8, 15, 4, 8)
_DESCRIPTIONS = (
    *(b"{", b"[]", b"null", b"{}", b'{"format": 2}', b"[" * 100_000, b"\xff", b'{"format": 2, "preprocessing": 3}'),
)
_VALUES: tuple[Any, ...] = (
    *nested.PLAIN, b"bytes", (1, 2, 3), complex(1, 1), {1: 2}, {1, 2}, nested.nest(200), torch.tensor(2.0),
    torch.zeros(3), torch.tensor([]), torch.tensor(float("nan")), torch.zeros(1).expand(10**9),
)  # fmt: skip
_TENSORS: tuple[tuple[str, Callable[[torch.Tensor], Any]], ...] = (
    ("NaN", lambda tensor: tensor * float("nan")),
    ("infinite", lambda tensor: tensor + float("inf")),
    ("huge", lambda tensor: torch.full_like(tensor, 3e38)),
    ("whole numbers", lambda tensor: tensor.to(torch.int64)),
    ("float64", lambda tensor: tensor.double()),
    ("float16", lambda tensor: tensor.half()),
    ("bfloat16", lambda tensor: tensor.bfloat16()),
    ("float8", lambda tensor: tensor.to(torch.float8_e4m3fn)),
    ("complex", lambda tensor: tensor.to(torch.complex64)),
    ("boolean", lambda tensor: tensor > 0),
    ("sparse", lambda tensor: tensor.to_sparse()),
    ("sparse in rows", lambda tensor: tensor.reshape(1, -1).to_sparse_csr()),
    ("one number over and over", lambda tensor: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)),
    ("expanded to 4 GB", lambda tensor: torch.zeros(1).expand(1 << 30)),
    ("empty", lambda tensor: tensor[:0] if tensor.ndim else tensor.reshape(1)[:0]),
    ("of another shape", lambda tensor: tensor.reshape(-1)),
    ("with an axis more", lambda tensor: tensor[None]),
    ("turned", lambda tensor: tensor.mT if tensor.ndim > 1 else tensor),
    ("without storage", lambda tensor: tensor.to("meta")),
    ("parameters", lambda tensor: torch.nn.Parameter(tensor)),
    ("lists", lambda tensor: tensor.tolist()),
    ("texts", lambda tensor: "weights"),
    ("nothing", lambda tensor: None),
    ("nested", lambda tensor: {"weight": tensor}),
    ("quantised", lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)),
)  # fmt: skip
