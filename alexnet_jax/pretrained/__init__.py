"""Weights of other programs: their files, and their names and layouts."""
