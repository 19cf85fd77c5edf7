"""Used by several test modules."""
