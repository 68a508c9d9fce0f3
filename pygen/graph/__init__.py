"""Captured decode steps: static caches, CUDA graphs, and polling without waiting."""
