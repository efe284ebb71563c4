"""Learning-rate schedules as closed formulas of the step, so that a resumed run needs no history."""

import math

POLY_EXPONENT = 0.9


def warmup_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter 2017).

    Args:
        step: optimizer steps taken so far, from 0.
        total_steps: steps in the whole run.
        warmup_steps: steps until the rate is at its peak.

    Returns:
        The factor on the peak rate: above 0 at step 0, 1 at the end of the warm-up, 0 after the last step.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_poly(step: int, total_steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then a fall that is almost linear, with nnU-Net's exponent of 0.9."""
    if step < warmup_steps:
        return warmup_cosine(step, total_steps, warmup_steps)
    left = (total_steps - step) / max(1, total_steps - warmup_steps)
    return max(0.0, left) ** POLY_EXPONENT


def cosine_anneal(step: int, total_steps: int, warmup_steps: int) -> float:
    """Half a cosine without warm-up."""
    return warmup_cosine(step, total_steps, warmup_steps=0)


def constant(step: int, total_steps: int, warmup_steps: int) -> float:
    """The peak rate throughout."""
    return 1.0
