"""The contestants' own side, one module each, run as `python -m benchmarks.peers.NAME` by the environment's Python."""
