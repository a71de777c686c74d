"""`minillm chat`: write a line, the model continues; everything said so far is its prompt."""

from dataclasses import dataclass
from itertools import count

from minillm.config import setting
from minillm.verbs.generate import Drawing, continuation, open_to_draw


@dataclass(frozen=True)
class Settings(Drawing):
    """Write a line and let the model go on, turn by turn; an empty line lets it continue alone, Ctrl-D leaves.

    The models here are not tuned to answer: they continue the text. Chapter 26 makes one that follows instructions.
    """

    max_new_tokens: int = setting(60, "the most tokens per turn")
    repetition_penalty: float = setting(1.1, "above 1 makes tokens that already occurred less likely")
    stop: str = setting("\n", "a turn ends when this text appears")


def run(settings: Settings) -> None:
    """Read lines until the end of input."""
    opened = open_to_draw(settings)
    text = ""
    for seed in count(settings.seed):
        try:
            text += input("> ")
        except EOFError:
            print()
            return
        for piece in continuation(opened, settings, text, seed, keep_last=True):
            print(piece, end="", flush=True)
            text += piece
        print()
        text += settings.stop
