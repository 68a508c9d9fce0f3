"""What happens to the scores of every step, and which of it one op fuses."""
