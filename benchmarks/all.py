"""Run every benchmark in turn and print one table; `make bench` calls this.

Each benchmark is a command of its own (`python benchmarks/bpe.py --help`) whose last line is the JSON that this reads.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = (
    "bpe", "train_step", "generation", "recipe", "dedup", "ngram", "hmm", "word2vec", "lstm", "attention", "models",
    "parallel", "products", "adapt", "quantize", "gptq",
)  # fmt: skip
EXTRAS = {  # a benchmark, the package it needs besides, and the extra that has it
    "ngram": ("kenlm", "oracle-lm"),
    "adapt": ("peft", "oracle-peft"),
}


def claims_of(name: str, words: list[str]) -> list[dict]:
    """Run one benchmark, show its output as it comes, and return the claims of its last line."""
    command = [sys.executable, "-u", str(HERE / f"{name}.py"), *words]
    print(f"\n== {' '.join(command[2:])}", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [line for line in process.stdout if print(line, end="", flush=True) is None]
    if process.returncode or not lines:
        raise SystemExit(f"benchmark {name} failed with exit code {process.returncode}")
    return json.loads(lines[-1])["claims"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", default=[], help=f"which benchmarks (default: {' '.join(NAMES)})")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a smoke test, not a measurement")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(NAMES)):
        parser.error(f"unknown {', '.join(unknown)}; known are {', '.join(NAMES)}")
    words = ["--quick"] if arguments.quick else []
    names = []
    for name in arguments.names or NAMES:
        package, extra = EXTRAS.get(name, ("", ""))
        if package and importlib.util.find_spec(package) is None:
            print(f"{name} is left out: it needs {package}; pip install -c constraints.txt -e '.[{extra}]' brings it")
        else:
            names.append(name)
    claims = [claim for name in names for claim in claims_of(name, words)]
    print("\n| what | peer | ratio | at least | aim | |\n| --- | --- | --: | --: | --: | --- |")
    for claim in claims:
        verdict = "holds" if claim["holds"] else "**falls short**"
        print(
            f"| {claim['what']} | {claim['peer']} | {claim['ratio']:.2f} | {claim['at_least']:g} "
            f"| {claim['aim']:g} | {verdict} |"
        )
    print(json.dumps({"claims": claims}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
