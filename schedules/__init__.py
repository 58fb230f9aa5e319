"""When work is due."""
