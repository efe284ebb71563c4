"""Hostile inputs, the place where programs get them, and what is made of the programs' ends."""
