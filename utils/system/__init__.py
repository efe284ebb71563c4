"""Errors, standard streams, files, signals, threads, users, memory and hardware. Imports nothing of this repository."""
