"""One call of `generate`: its arguments, and what follows from them before a decoding loop runs."""
