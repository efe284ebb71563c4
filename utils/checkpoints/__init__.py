"""Weights files: our own, their description, and weights from elsewhere."""
