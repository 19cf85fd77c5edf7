"""Weights of other programs: files, names and layouts."""
