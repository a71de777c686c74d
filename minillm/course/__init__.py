"""The teaching machinery. Works from a clone: it reads `chapters/`, which an installed package does not carry."""
