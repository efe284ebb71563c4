"""Networks by name. A network is one file: its class, a config whose fields become its flags, and ``@register``.

    @dataclass(frozen=True)
    class MyNetConfig(NetworkConfig):
        width: int = flag(32, "channels at full resolution", at_least=1)

    @register("mynet", config=MyNetConfig, window_divisor=lambda config: (16, 16, 16))
    class MyNet(nn.Module):
        blocks = (MyBlock,)
        def __init__(self, config: MyNetConfig) -> None: ...

What a class may declare beside its layers, all of it optional:

``blocks``             classes of the modules that are compiled, or recomputed in the backward pass, one by one
``input_layers``       names of the layers that read the scan's channels; adapting may average their weights
``output_layers``      names of the layers with an output for each class; adapting may initialise them anew
``position_embeddings``  name of a parameter (1, N, E), one embedding for each patch of ``config.patch``; adapting
                       may interpolate it
``any_window``         True if weights fit windows of any size, but for the position embeddings
``parameter_groups``   by name of a group, its layers: ``{"vit": ("vit",)}`` makes the flags ``vit_lr`` and
                       ``vit_reg_weight``; or a method that returns groups as torch's optimizers take them
``vit_encoder``        name of a :class:`networks.vit.ViT` that ``vit_weights`` may fill and ``utils.pretrain`` trains;
                       then ``embed`` turns a volume into its tokens, and ``encoder_layers`` names the encoder's layers
``cuda_graph``         True if a training step can be recorded as a CUDA graph
``fast_layers``        True if all layers of :func:`networks.layers.optimize_for_cpu` were measured to pay
``unsafe_bfloat16_roi_x``  windows' voxels along x at which a 3×3×3 convolution sees a volume two voxels deep along x;
                       or a static method that gives them for a config
``sizes``              a :class:`Size` for each size that ``utils.plan`` may choose, the smallest first
``settings_of``        static method: a state dict -> the settings that its shapes show, for messages
``origin_of``          static method: a state dict -> the program that wrote it, and the tensors that none reads
"""

import dataclasses
import hashlib
import importlib.util
import math
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from utils.system.errors import InputError, first_line, size_text
from utils.system.typed import shown, shown_text, type_faults

StateDict = Mapping[str, Tensor]
Kind = TypeVar("Kind", bound=type)
OF_THE_WINDOW = ("img_size", "spacing")  # fields that have no flag: they follow from --roi_* and --space_*
# far beyond what anyone trains, and within what a machine can hold
MOST_CHANNELS = 1024
MOST_VOXELS = 2**26  # of a window: 406 along each axis
FINEST_MM, COARSEST_MM = 1e-3, 1e3


def flag(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] | None = None,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
    multiple_of: int = 1,
    any_weights: bool = False,
    rare: bool = False,
) -> Any:
    """A field of a config that is also a flag of its name.

    Args:
        help: what the help text says of it.
        choices: the values that it may have.
        at_least, below: bounds of a number.
        at_most: what no machine can hold more of.
        multiple_of: what a whole number must be a multiple of.
        any_weights: whether weights that were trained with another value fit too, as with dropout.
        rare: whether the short help text leaves it out.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "at_least": at_least,
        "below": below,
        "at_most": at_most,
        "multiple_of": multiple_of,
        "any_weights": any_weights,
        "rare": rare,
    }
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(config: type, name: str, default: Any, help: str | None = None) -> Any:
    """A flag as another config has it, with another default, and where it is given another help text."""
    field: dataclasses.Field[Any] = config.__dataclass_fields__[name]  # type: ignore[attr-defined]
    metadata = field.metadata if help is None else {**field.metadata, "help": help}
    return dataclasses.field(default=default, metadata=metadata)


def value_fault(value: Any, rules: Mapping[str, Any]) -> str | None:
    """What is wrong with a setting, as "must be at least 1, not 0"; None if it keeps the rules of :func:`flag`."""
    if rules.get("choices") is not None:
        known = ", ".join(map(str, rules["choices"]))
        return None if value in rules["choices"] else f"must be one of {known}, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    at_least, below, at_most, multiple = (
        rules.get("at_least", -math.inf),
        rules.get("below", math.inf),
        rules.get("at_most", math.inf),
        rules.get("multiple_of", 1),
    )
    bounds = [f"at least {at_least:g}"] if at_least > -math.inf else []
    bounds += [f"below {below:g}"] if below < math.inf else []
    if not at_least <= value < below or (isinstance(value, float) and not math.isfinite(value)):
        return f"must be {' and '.join(bounds) or 'finite'}, not {shown(value)}"
    if value > at_most:
        return f"must be at most {at_most:g}, not {shown(value)}"
    return f"must be a multiple of {multiple}, not {value}" if isinstance(value, int) and value % multiple else None


def window_size_fault(size: tuple[int, ...]) -> str | None:
    """What is wrong with the edges of a window in voxels, whatever the network; None if nothing is."""
    if min(size) < 1:
        return f"must be three numbers of voxels, not {size_text(size)}"
    if math.prod(size) > MOST_VOXELS:
        return f"must be at most {MOST_VOXELS:,} voxels in all, not {size_text(size)}"
    return None


def spacing_fault(spacing: tuple[float, ...]) -> str | None:
    """What is wrong with the size of a voxel in mm; None if nothing is."""
    if all(FINEST_MM <= mm <= COARSEST_MM for mm in spacing):
        return None
    return f"must be three numbers of {FINEST_MM:g} to {COARSEST_MM:g} mm, not {shown(spacing)}"


@dataclass(frozen=True)
class NetworkConfig:
    """What every network is built from. A network's own config adds fields, each with a default.

    Attributes:
        img_size: the window in voxels along x, y, z; one number stands for all three.
        spacing: size of a voxel in mm along x, y, z.

    Raises:
        ValueError: naming every field that can't make a network.
    """

    in_channels: int = flag(1, "channels of a scan", at_least=1, at_most=MOST_CHANNELS)
    out_channels: int = flag(14, "classes, background included", at_least=1, at_most=MOST_CHANNELS)
    img_size: tuple[int, int, int] = (96, 96, 96)
    spacing: tuple[float, float, float] = (1.5, 1.5, 2.0)

    def __post_init__(self) -> None:
        if isinstance(self.img_size, int):
            object.__setattr__(self, "img_size", (self.img_size,) * 3)
        for name in OF_THE_WINDOW:
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        # the later ones need the earlier to be sound
        faults = type_faults(self) or self._value_faults() or self.faults() or self._window_faults()
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def patch(self) -> tuple[int, int, int]:
        """Voxels of a patch along x, y, z, if the network has a ``patch_size``."""
        edge: int = self.patch_size  # type: ignore[attr-defined]
        return edge, edge, edge

    def grid_of(self, window: Sequence[int]) -> tuple[int, int, int]:
        """Patches along each axis of a window of so many voxels."""
        x, y, z = (voxels // edge for voxels, edge in zip(window, self.patch, strict=True))
        return x, y, z

    def _value_faults(self) -> list[str]:
        rules = {field.name: field.metadata for field in dataclasses.fields(self)}
        faults = {name: value_fault(getattr(self, name), of_field) for name, of_field in rules.items()}
        faults |= {"img_size": window_size_fault(self.img_size), "spacing": spacing_fault(self.spacing)}
        return [f"`{name}` {fault}" for name, fault in faults.items() if fault is not None]

    def faults(self) -> list[str]:
        """What is wrong between fields that are sound by themselves; names of fields stand in backquotes."""
        return []

    def _window_faults(self) -> list[str]:
        size = size_text(self.img_size)
        architecture = ARCHITECTURES.get(type(self))
        if architecture is None:
            return []  # not registered yet
        try:
            divisor = architecture.window_divisor(self)
        except ValueError as error:
            return [f"`img_size` {size}: {error}"]
        if any(edge % step for edge, step in zip(self.img_size, divisor, strict=True)):
            multiples = str(divisor[0]) if len(set(divisor)) == 1 else size_text(divisor)
            return [f"`img_size` must be multiples of {multiples} for {architecture.name}, not {size}"]
        return []


@dataclass(frozen=True)
class Size:
    """A size of a network that planning may choose.

    Attributes:
        settings: of its config; the others have their defaults.
        optim_lr: the highest learning rate of AdamW that suits it.
    """

    settings: Mapping[str, Any]
    optim_lr: float


@dataclass(frozen=True)
class Architecture:
    """A registered network.

    Attributes:
        name: what ``model_name`` and checkpoints call it.
        config: the class of its settings.
        network: builds it from a config.
        window_divisor: from a config, what the window's edges must be multiples of along x, y, z; a ``ValueError``
            says why a window won't do.
        file, sha256: where it came from outside the repository, and the hash of that file.
    """

    name: str
    config: type[NetworkConfig]
    network: Callable[[Any], nn.Module]
    window_divisor: Callable[[Any], tuple[int, ...]]
    file: Path | None = None
    sha256: str | None = None

    @property
    def title(self) -> str:
        """Its name, and for a network from a file also which file that was."""
        return self.name if self.file is None else f"{self.name} ({self.file.name}, SHA-256 {self.sha256})"

    def declared(self, name: str, default: Any = ()) -> Any:
        """What the network's class declares under one of the names in this module's docstring."""
        return getattr(self.network, name, default)

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """By name, the layers of each group of parameters that has flags of its own."""
        declared = self.declared("parameter_groups", {})
        return declared if isinstance(declared, Mapping) else {}

    @property
    def flags(self) -> dict[str, dataclasses.Field[Any]]:
        """By name, the fields of its config that are flags."""
        return {field.name: field for field in dataclasses.fields(self.config) if field.name not in OF_THE_WINDOW}

    @property
    def types(self) -> dict[str, type]:
        """By name, the types of its config's fields."""
        return typing.get_type_hints(self.config)

    def make_config(self, settings: Mapping[str, Any]) -> NetworkConfig:
        """Its config from settings by name; lists, as JSON has them, become tuples.

        Raises:
            ValueError: if a setting isn't the network's, or the settings can't make a network.
        """
        fields = {field.name for field in dataclasses.fields(self.config)}
        foreign = [name for name in settings if name not in fields]
        if foreign:
            raise ValueError(
                "; ".join(f"`{shown_text(name)}` is not for {self.name}; leave it out" for name in foreign)
            )
        fitting: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        return self.config(**fitting)

    def build(self, config: NetworkConfig) -> nn.Module:
        """The network, with fresh weights. It knows what it was built from as ``network.config``."""
        network = self.network(config)
        network.config = config  # type: ignore[assignment]  # torch's types know tensors and modules alone
        return network

    def build_empty(self, config: NetworkConfig) -> nn.Module:
        """The network, to be filled with a file's weights: on torch's device ``meta``, where building takes no time.

        One from a file outside the repository has fresh weights after all: its class may compute with numbers while it
        is built, or keep tensors that are in no file.
        """
        with torch.device("meta") if self.file is None else nullcontext():
            return self.build(config)

    def require(self, name: str, setting: str, what: str) -> Any:
        """What the network's class declares under ``name``.

        Args:
            setting: what asks for it.
            what: what can't be done without it.

        Raises:
            InputError: if it declares nothing there.
        """
        found = self.declared(name)
        if not found:
            raise InputError(
                f"`{setting}`: {self.name} can't be {what}, since its class declares no “{name}”. Leave the setting "
                "out, or declare it (docs/architecture.md)."
            )
        return found


NETWORKS: dict[str, Architecture] = {}  # by name; those of files outside the repository are not among them
AUTOENCODERS: dict[str, Architecture] = {}  # by name, those that pre-train the encoders of these
ARCHITECTURES: dict[type, Architecture] = {}  # all, by the class of their config
FILE_MODULE = "network_file_"  # how the module of such a file is called, before its hash
_FROM_FILES: list[Architecture] = []


def register(name: str, *, config: type, window_divisor: Callable[[Any], tuple[int, ...]]) -> Callable[[Kind], Kind]:
    """Register a class as the network ``name``. It is built from an instance of ``config``.

    A config that doesn't inherit from :class:`NetworkConfig` gets its fields all the same. That of another network may
    be given too.

    Raises:
        TypeError: if it is no dataclass.
    """
    if "__dataclass_fields__" not in vars(config):  # what is inherited lacks the fields of this class
        raise TypeError(f"{config.__name__}, the config of {name}, must be a dataclass")
    whole = config
    if not issubclass(config, NetworkConfig) or config in ARCHITECTURES:  # a config belongs to one network
        bases = (config,) if issubclass(config, NetworkConfig) else (config, NetworkConfig)
        whole = dataclass(frozen=True)(type(config.__name__, bases, {"__module__": config.__module__}))

    def add(network: Kind) -> Kind:
        architecture = Architecture(name, whole, network, window_divisor)
        ARCHITECTURES[whole] = architecture
        if network.__module__.startswith(FILE_MODULE):
            _FROM_FILES.append(architecture)
        else:
            NETWORKS[name] = architecture
        return network

    return add


def find_architecture(name: str) -> Architecture:
    """The network that ``model_name`` means: a registered name, or a Python file that defines one.

    A file is code, and is run: give only files that you trust.

    Raises:
        InputError: if there is no such network, or the file doesn't define one.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if name.endswith(".py"):
        return _load_file(Path(name))
    raise InputError(
        f"`model_name` must be one of {', '.join(NETWORKS)}, or a .py file that defines one, not {name!r}."
    )


def architecture_of(thing: NetworkConfig | nn.Module) -> Architecture:
    """What a config, or a network that :func:`build_network` made, is an instance of."""
    config = thing.config if isinstance(thing, nn.Module) else thing
    return ARCHITECTURES[type(config)]


def build_network(name: str, **settings: Any) -> nn.Module:
    """Build a network with fresh weights: ``build_network("unetr", in_channels=1, out_channels=14, img_size=96)``.

    Args:
        settings: fields of its config; the others have their defaults.

    Raises:
        InputError: if there is no such network.
        ValueError: if the settings can't make one.
    """
    architecture = find_architecture(name)
    return architecture.build(architecture.make_config(settings))


_FILES: dict[str, Architecture] = {}  # by SHA-256


def _load_file(path: Path) -> Architecture:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"`model_name` {path}: can't be read ({error.strerror}). Give a .py file.") from error
    sha256 = hashlib.sha256(content).hexdigest()
    known = _FILES.get(sha256)
    if known is not None:  # maybe by another path, whose file can have changed since
        return known if known.file == path else _keep(dataclasses.replace(known, file=path))
    module_name = f"{FILE_MODULE}{sha256[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    _FROM_FILES.clear()  # of what a file registered that was then refused
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's code raises
        del sys.modules[module_name]
        raise InputError(f"`model_name` {path}: can't be run ({type(error).__name__}: {first_line(error)}).") from error
    found = list(_FROM_FILES)
    if len(found) != 1:
        raise InputError(
            f"`model_name` {path}: registers {len(found)} networks, and has to register one. See docs/architecture.md."
        )
    if found[0].name in NETWORKS:
        raise InputError(f"`model_name` {path}: calls its network {found[0].name}, as ours is called. Rename it.")
    try:
        types = found[0].types
    except Exception as error:  # an annotation that names nothing
        raise InputError(f"`model_name` {path}: its config's types can't be found ({first_line(error)}).") from error
    faults = [
        f"its field {name} must be an int, float, str or bool with a default"
        for name, field in found[0].flags.items()
        if types[name] not in (int, float, str, bool) or field.default is dataclasses.MISSING
    ]
    if faults:
        raise InputError(f"`model_name` {path}: {'; '.join(faults)}, to be a flag.")
    return _keep(dataclasses.replace(found[0], file=path, sha256=sha256))


def _keep(architecture: Architecture) -> Architecture:
    """Remember a network from a file."""
    assert architecture.sha256 is not None
    _FILES[architecture.sha256] = ARCHITECTURES[architecture.config] = architecture
    return architecture


def lies_in(tensor: str, layers: Iterable[str]) -> bool:
    """Whether a tensor of a state dict belongs to one of some layers, given by their names."""
    return any(tensor == layer or tensor.startswith(f"{layer}.") for layer in layers)


def file_given(name: str, file_name: str, sha256: str) -> Architecture:
    """The network ``name`` from a file with this hash, which has been given in this program before.

    A checkpoint doesn't bring its network's code, and nothing loads code by itself.

    Raises:
        InputError: if that file wasn't given, or has changed since.
    """
    if sha256 in _FILES:
        return _FILES[sha256]
    same_name = next((one for one in _FILES.values() if one.name == name), None)
    if same_name is None:
        raise InputError(
            f"its network {name} is defined in {file_name} (SHA-256 {sha256}). That is code, and isn't loaded unasked. "
            f"Give it as `model_name` PATH/{file_name} (in Python: network_file)."
        )
    raise InputError(
        f"its network {name} is defined in {file_name} (SHA-256 {sha256}), but {same_name.file} has SHA-256 "
        f"{same_name.sha256}. Give the file as it was in training."
    )
