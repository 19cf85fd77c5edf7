"""The parts of experiments/sweep.py, and the files that list variants."""
