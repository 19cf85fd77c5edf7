"""Faster equivalents of operations on one platform; layers.py has the definitions."""
