"""Weights files: what they hold, reading and writing them, starting or continuing a run from them.

``from utils.checkpoints import load_network; network, description = load_network("runs/x/model.pt")``
"""

from utils.checkpoints.load import load_network

__all__ = ["load_network"]
