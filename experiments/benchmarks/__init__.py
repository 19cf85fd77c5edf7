"""The parts of benchmarks: programs in processes of their own that take turns."""
