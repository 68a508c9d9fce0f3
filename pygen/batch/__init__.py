"""Many prompts through one model: rows of a batch that come and go."""
