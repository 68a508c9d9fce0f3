"""Decoding loops: each file holds one loop, which owns the order of the steps and none of the arithmetic."""
