"""`python -m minillm` is the same as the command `minillm`."""

from minillm.cli import command

if __name__ == "__main__":
    command()
