"""Segment scan after scan into an output folder."""
