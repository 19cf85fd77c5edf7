"""The environment of a run: processes, devices, files, signals and the command line."""
