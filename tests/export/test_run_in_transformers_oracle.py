"""A run of `minillm train --model llama --size tiny` opens in `transformers`: the same ids, the same greedy text."""

import random

import pytest
import torch

from minillm.cli import main
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.bytes import ByteTokenizer

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
LINES = ["Anna sees two boats", "naïve café, 猫 and 3.14!", "  spaces\n\nand\tmore  ", "", "it's 2024's", "<|endof"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = random.Random(0)
    parts = ("Anna Ben Cleo Dan", "sees likes finds", "red blue old new", "boats houses birds maps")
    sentences = (" ".join(draw.choice(part.split()) for part in parts) + "." for _ in range(300))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(sentences), encoding="utf-8")
    return path


@pytest.mark.parametrize("model, tokenizer", [("llama", "bpe"), ("gpt2", "bytes")])
def test_a_trained_run_gives_the_same_greedy_text(text, model, tokenizer, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    out, folder = str(tmp_path / "run"), str(tmp_path / "hf")
    words = "--size tiny --steps 30 --batch-size 8 --max-seq-len 48 --vocab-size 300 --precision fp32 --device cpu"
    words = ["--model", model, "--tokenizer", tokenizer, *words.split()]
    assert main(["train", "--data", str(text), "--out", out, *words]) == 0
    assert main(["export", "--to", "hf", out, folder]) == 0
    capsys.readouterr()
    assert main(["generate", out, "--prompt", "Ben finds", "--temperature", "0", "--max-new-tokens", "25"]) == 0
    ours = capsys.readouterr().out.removesuffix("\n")
    assert ours.startswith("Ben finds") and len(ours) > len("Ben finds") + 10

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[peer.config.bos_token_id, *their_tokenizer.encode("Ben finds")]])
    theirs = peer.generate(ids, max_new_tokens=25, do_sample=False)[0, 1:]
    assert their_tokenizer.decode(theirs, skip_special_tokens=True) == ours


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
@pytest.mark.parametrize("reader", ["AutoTokenizer", "PreTrainedTokenizerFast"])
def test_their_tokenizers_give_our_ids(text, pattern, reader, tmp_path):
    transformers = pytest.importorskip("transformers")
    from minillm.export.tokenizer import write_tokenizer

    for number, tokenizer in enumerate([BPETokenizer.train(text, 400, pattern=pattern), ByteTokenizer()]):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_tokenizer(tokenizer, folder, 64)
        theirs = getattr(transformers, reader).from_pretrained(folder)
        for line in [*LINES, text.read_text(encoding="utf-8")[:500]]:
            ids = tokenizer.encode(line)
            assert theirs.encode(line) == ids and theirs.decode(ids) == line
        assert theirs.eos_token_id == tokenizer.special_tokens["<|endoftext|>"] and theirs.model_max_length == 64
