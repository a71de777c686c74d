"""A small text and small runs on it, made through the command line in this process."""

import random

import pytest

from minillm import runtime
from minillm.cli import main

SMALL = "--size nano --precision fp32 --device cpu --tokenizer bytes --max-seq-len 32 --batch-size 4 --log-every 1"


def small_documents(n_documents: int = 8, n_sentences: int = 30) -> list[str]:
    draw = random.Random(0)
    words = ("Anna Ben Cleo Dan Eva Finn", "sees likes finds carries paints", "boats houses birds maps lamps")
    sentences = [" ".join(draw.choice(part.split()) for part in words) for _ in range(n_documents * n_sentences)]
    return [". ".join(sentences[n::n_documents]) + "." for n in range(n_documents)]


@pytest.fixture(scope="session", autouse=True)
def quick_yardstick():
    """Measure the machine's matrix products on small ones: a second per run saved."""

    def measure(device, dtype):
        return runtime.matmul_flops_per_second(device, dtype, size=64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minillm.verbs.training.matmul_flops_per_second", measure)
        yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Eight documents of 30 sentences, about 5 kB of ASCII."""
    path = tmp_path_factory.mktemp("text") / "small.txt"
    path.write_text("\n\n***\n\n".join(small_documents()) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def train_small(text_file):
    """train_small(out, "--flag", "value", ...): exit code of a nano run over bytes, context 32."""

    def train_it(out, *words: str) -> int:
        return main(["train", "--data", str(text_file), *SMALL.split(), "--out", str(out), *words])

    return train_it


@pytest.fixture(scope="session")
def trained(train_small, tmp_path_factory):
    """The folder of a run of 20 steps that tests only read."""
    out = tmp_path_factory.mktemp("runs") / "first"
    cadence = ["--validate-every", "10", "--sample-every", "10", "--checkpoint-every", "15"]
    assert train_small(out, "--steps", "20", "--prompt", "Anna", *cadence) == 0
    return out


@pytest.fixture
def refuses(capsys):
    """refuses(words, *parts): exit code 2, nothing printed but one line on stderr, and these parts in it."""

    def check(words: list, *parts: str) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith(f"minillm {words[0]}: ") and shown.err.count("\n") == 1, shown.err
        for part in parts:
            assert str(part) in shown.err
        return shown.err

    return check
