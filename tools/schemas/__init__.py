"""The documents of the two interfaces, made from the structs that describe them."""
