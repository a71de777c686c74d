"""The command `minillm VERB ...`: finds the verb, reads its settings, calls it, turns our errors into a clear line."""

import importlib
import sys

from minillm.config import parse_config
from minillm.errors import MinillmError

VERBS = {
    "data": "list the texts, or look at one: size, documents, first lines",
    "tokenize": "train a tokenizer on a text, or show how one cuts a sentence",
    "train": "train a model on a text; without arguments, a small one on our stories",
    "finetune": "adapt a trained model to a task by training few of its numbers; or the table of all methods",
    "quantize": "store a trained model in 2 to 8 bits a weight, and show what each layer loses",
    "generate": "continue a prompt with a trained model",
    "chat": "the same, turn by turn at the terminal",
    "export": "write a run for transformers or llama.cpp",
    "models": "model families and sizes with their parameters, or what one family changed of another",
    "evaluate": "a run's loss, perplexity and bits per byte beside simpler models",
    "plot": "draw the loss curves of one or several runs",
    "demo": "from raw text to two trained models, with tables and pictures, in two to four minutes",
    "course": "exercises: begin a chapter, test your code, see your points; grade and hand out, for instructors",
    "doctor": "versions, cores, memory, device, free disk, and what is missing",
}


def main(argv: list[str]) -> int:
    """Run one verb.

    Args:
        argv: command-line words without the program name.

    Returns:
        The exit code: 0 done, 2 bad input, 130 interrupted from the keyboard; a verb may return another.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        from minillm import __version__

        print(f"minillm {__version__}")
        return 0
    name, words = argv[0], argv[1:]
    if name not in VERBS:
        print(f"minillm: unknown verb {name!r}; known are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    verb = importlib.import_module(f"minillm.verbs.{name}")
    try:
        if hasattr(verb, "ACTIONS"):
            return verb.run(words)
        fill_in = getattr(verb, "fill_in", None)
        return verb.run(parse_config(verb.Settings, words, f"minillm {name}", fill_in)) or 0
    except MinillmError as error:
        print(f"minillm {name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = ["usage: minillm VERB [settings]   (minillm VERB --help explains every setting)", ""]
    lines += [f"  {name:9} {text}" for name, text in VERBS.items()]
    return "\n".join(lines)


def command() -> None:
    """Entry point of the installed command."""
    sys.exit(main(sys.argv[1:]))
