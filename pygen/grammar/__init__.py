"""Texts that follow a grammar: matchers of other packages, and the mask that they fill for the ops."""
