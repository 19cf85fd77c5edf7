"""What a run is on: processes, devices, files, signals, the command line."""
