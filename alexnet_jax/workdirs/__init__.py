"""The contents of a run's folder."""
