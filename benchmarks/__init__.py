"""Benchmarks: speed, and models and circuits that are known."""
