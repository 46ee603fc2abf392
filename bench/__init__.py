"""Benchmarks: each module is a command, ``python -m minimodel.bench.NAME``."""
