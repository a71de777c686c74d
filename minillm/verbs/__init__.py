"""One module per verb of the command line: a frozen dataclass of settings and a function that runs them."""
