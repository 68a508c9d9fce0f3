"""Adapters: they run forwards and keep caches for models of any family."""
