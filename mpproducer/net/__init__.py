"""Bytes to and from brokers: streams that never block, names."""
