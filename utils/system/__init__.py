"""Errors, files, signals, threads, memory and hardware. Imports nothing of this repository."""
