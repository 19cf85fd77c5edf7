"""Drawings, one file per kind of figure; experiments/figures.py is their command."""
