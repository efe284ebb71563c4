"""Scores, measurements, tables, pictures and the report."""
