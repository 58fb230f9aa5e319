"""Promises of speed and memory, each measured against a peer in the same run: `python -m benchmarks NAME`."""
