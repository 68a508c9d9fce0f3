"""Ways into pygen from other packages, one module per package. None of them is imported before it is used."""
