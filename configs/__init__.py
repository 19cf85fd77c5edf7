"""The networks and their training: configs/paper.py has every number, the others are short diffs of it."""
