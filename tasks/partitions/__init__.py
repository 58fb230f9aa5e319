"""Partitions: there before the clock needs them, moved out when they are old."""
