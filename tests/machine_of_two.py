"""``main.py`` on one of two machines in a test: each process saves its weights to ``${WEIGHTS}RANK.pt``."""

import os
from typing import Any

import torch

import main as training_program
from utils.checkpoints.progress import Progress

original = training_program.run_training


def run_training(run: Any, progress: Progress) -> None:
    original(run, progress)
    torch.save(run.learner.network.state_dict(), f"{os.environ['WEIGHTS']}{run.process.rank}.pt")


training_program.run_training = run_training  # type: ignore[assignment]
training_program.run()
