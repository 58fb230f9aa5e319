"""Declared jobs: one SQL statement by name, on a schedule or when asked for, once or until nothing is left."""
