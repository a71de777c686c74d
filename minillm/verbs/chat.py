"""`minillm chat`: write a line, the model continues; everything said so far is its prompt."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from minillm.config import setting
from minillm.verbs import generate


@dataclass(frozen=True)
class Settings:
    """Write a line and let the model go on, turn by turn; an empty line lets it continue alone, Ctrl-D leaves.

    The models here are not tuned to answer: they continue the text. Chapter 26 makes one that follows instructions.
    """

    run: Path = setting(Path("runs/demo"), "folder of the run", positional=True)
    max_new_tokens: int = setting(60, "the most tokens per turn")
    temperature: float = setting(0.8, "below 1 favours likely tokens, above 1 evens out, 0 always takes the likeliest")
    top_k: int = setting(0, "keep only the k likeliest tokens; 0 keeps all")
    top_p: float = setting(0.95, "keep the fewest tokens whose probabilities reach this sum")
    min_p: float = setting(0.0, "drop tokens less likely than this times the likeliest")
    repetition_penalty: float = setting(1.1, "above 1 makes tokens that already occurred less likely")
    stop: str = setting("\n", "a turn ends when this text appears")
    seed: int = setting(0, "for the draws; turn i uses seed + i")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps; one that is missing is an error")
    precision: str = setting("fp32", "number format of the weights", choices=("auto", "fp32", "bf16", "fp16"))


def run(settings: Settings) -> None:
    """Read lines until the end of input."""
    from minillm.runtime import choose_device, choose_dtype
    from minillm.verbs.run_folder import open_run

    device = choose_device(settings.device)
    opened = open_run(settings.run, device, choose_dtype(settings.precision, device).dtype)
    shared = {field.name: getattr(settings, field.name) for field in fields(settings)}
    drawing = replace(generate.Settings(**shared), keep_last=True)
    text = ""
    for turn in range(1_000_000):
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        text += line
        for piece in generate.continuation(opened, drawing, text, settings.seed + turn):
            print(piece, end="", flush=True)
            text += piece
        print()
        text += settings.stop
