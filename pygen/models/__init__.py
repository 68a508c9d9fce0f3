"""Adapters, which run forwards and manage caches for models of any family."""
