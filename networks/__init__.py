"""The networks that ``--model_name`` can name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from networks.monai_networks import dynunet, dynunet_steps, segresnet, segresnet_steps, swin_unetr, swin_unetr_steps
from networks.unetr import PATCH_SIZES, UNETR, unetr_steps


@dataclass(frozen=True)
class Architecture:
    """What is to know of a network before it is built.

    Attributes:
        build: makes it from keywords of its own, which a checkpoint records.
        steps: from what it names of a window's voxels ``img_size``, their ``spacing`` in mm and the keywords of
            ``build``, what the window's edges must be multiples of; a ``ValueError`` says why a window is too small.
        unsound_roi_x: windows' voxels along x that lead to 3×3×3 convolutions of volumes two voxels deep along x.
    """

    build: Callable[..., nn.Module]
    steps: Callable[..., tuple[int, ...]]
    unsound_roi_x: tuple[int, ...]

    def steps_of(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """What :attr:`steps` gives for what it names of ``options``."""
        return self.steps(**{name: options[name] for name in inspect.signature(self.steps).parameters})

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords of :attr:`build`."""
        return tuple(inspect.signature(self.build).parameters)

    @property
    def defaults(self) -> dict[str, Any]:
        """Those that have a default, with it."""
        parameters = inspect.signature(self.build).parameters
        return {name: one.default for name, one in parameters.items() if one.default is not inspect.Parameter.empty}


NETWORKS: Mapping[str, Architecture] = {
    "unetr": Architecture(UNETR, unetr_steps, unsound_roi_x=PATCH_SIZES),
    "swin_unetr": Architecture(swin_unetr, swin_unetr_steps, unsound_roi_x=(32, 64)),
    "segresnet": Architecture(segresnet, segresnet_steps, unsound_roi_x=(8, 16)),
    "dynunet": Architecture(dynunet, dynunet_steps, unsound_roi_x=(2,)),
}


def build_network(name: str, **options: Any) -> nn.Module:
    """Build the network ``name`` from its own keywords, which a checkpoint records.

    Raises:
        ValueError: if there is no such network, or its keywords can't make one.
    """
    if name not in NETWORKS:
        raise ValueError(f"model_name must be one of {', '.join(NETWORKS)}, not {name!r}")
    return NETWORKS[name].build(**options)
