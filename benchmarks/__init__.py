"""What the README claims, as commands that measure it."""
