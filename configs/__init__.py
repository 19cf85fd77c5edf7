"""The networks and how they are trained: configs/paper.py is the whole list, others are diffs."""
