"""The modes of generation: each file takes a resolved call through its loop to its output."""
