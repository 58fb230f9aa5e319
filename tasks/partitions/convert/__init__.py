"""Turns a large plain table into a partitioned one, without stopping its writers."""
