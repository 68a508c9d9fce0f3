"""The commands of the program `pygen`, one module each. A command is imported once it is chosen."""
