"""Data sets: what their files hold, in which order it is read, and batches of it on the devices."""
