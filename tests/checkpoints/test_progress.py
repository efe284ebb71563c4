"""How far a run has come, counted in steps and scores."""

import pytest

from utils.checkpoints.progress import Progress, UnfinishedEpoch


def test_the_best_score_is_the_highest_and_a_number_beats_none() -> None:
    progress = Progress()
    better = []
    for score in [float("nan"), 0.3, float("nan"), 0.2, 0.4]:
        better.append(progress.improves(score))
        if better[-1]:
            progress.best_score = score
    assert better == [True, True, False, False, True]
    assert progress.best_score == 0.4


@pytest.mark.parametrize(
    ("scans", "done"),
    # of 7 scans in batches of 2: steps of 2, 2, 2 and 1 scans
    [(0, 8), (2, 9), (6, 11), (7, 12)],
)
def test_steps_of_an_unfinished_epoch(scans: int, done: int) -> None:
    progress = Progress(epoch=2, unfinished=UnfinishedEpoch(scans=scans))
    assert progress.steps_done(7, processes=1, batch_size=2, accumulate=1) == done


def test_steps_of_several_processes_and_batches() -> None:
    # of 11 scans each of two processes has 6 (one comes twice), in batches of 2, 2 and 2, and so steps of two and one
    for scans, done in ((0, 2), (8, 3), (11, 4), (12, 4)):
        progress = Progress(epoch=1, unfinished=UnfinishedEpoch(scans=scans))
        assert progress.steps_done(11, processes=2, batch_size=2, accumulate=2) == done
