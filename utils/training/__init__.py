"""What a training run consists of beside its loop (trainer.py)."""
