"""The parts of benchmarks: programs that take turns, each in its own process."""
