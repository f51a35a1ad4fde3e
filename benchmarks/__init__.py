"""Benchmarks: each is a module to run (`python -m benchmarks.train`) that prints a card and, last, one JSON line."""
