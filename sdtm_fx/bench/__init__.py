"""Benchmarks: merged against dense, interleaved in one run, beside what the arithmetic allows."""
