"""Models in the formats of others; their weight names and config keys live only here."""
