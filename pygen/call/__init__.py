"""One call of `generate`, resolved."""
