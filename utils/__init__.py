"""Commands (the files in this folder) and the library (its folders, each with one job)."""

__version__ = "0.2.0"
