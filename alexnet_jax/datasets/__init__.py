"""Data sets: their files, the order of their examples, and batches of them on the devices."""
