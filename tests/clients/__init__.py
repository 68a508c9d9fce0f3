"""Packages that call `generate`, themselves: `make test-clients`, in an environment that has them."""
