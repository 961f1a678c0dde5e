"""Benchmarks: mpproducer and its peers on the same broker, interleaved, as ratios of one run."""
