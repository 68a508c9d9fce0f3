"""Tests with real packages that call `generate`: `make test-clients` runs them in an environment that has these."""
