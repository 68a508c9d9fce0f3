"""Decoding loops and the modes of `generate` that run them."""
