"""BPE training and encoding against Hugging Face `tokenizers` (Rust): `python benchmarks/bpe.py [--quick]`.

The text is 5.24 MB of plays, documentation and source code from this machine: TinyShakespeare where `../shared/data`
exists, the help topics of Python and its standard library. Both sides split as GPT-2 does, train the same vocabulary
size and encode the same list of documents with caches that start empty.
"""

import argparse
import os
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

from pairs import Claim, median_ratio, paired_seconds, print_claims

from minillm.tokenizers import BPETokenizer

SHAKESPEARE = Path(__file__).resolve().parents[2] / "shared/data/tinyshakespeare.txt"
CORPUS_BYTES = 5_240_000
DOCUMENT_CHARACTERS = 20_000


def corpus(n_bytes: int) -> str:
    """Mixed text of `n_bytes`, or a little less where a character would be cut."""
    texts = [SHAKESPEARE.read_text(encoding="utf-8")] if SHAKESPEARE.exists() else []
    texts += topics.values()
    n_read = sum(len(text.encode()) for text in texts)
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        texts.append(path.read_text(encoding="utf-8"))
        n_read += len(texts[-1].encode())
        if n_read >= n_bytes:
            break
    return "".join(texts).encode()[:n_bytes].decode("utf-8", "ignore")


def documents(text: str) -> list[str]:
    """The text in documents of about `DOCUMENT_CHARACTERS`, parted at line ends."""
    parts, start = [], 0
    while start < len(text):
        end = text.find("\n", start + DOCUMENT_CHARACTERS)
        parts.append(text[start : end + 1 if end >= 0 else len(text)])
        start += len(parts[-1])
    return parts


def peer_training(texts: list[str], vocab_size: int):
    """Train Hugging Face's byte-level BPE on the same documents."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encoding_pair(texts: list[str], trained: BPETokenizer):
    """Two functions that encode all documents with our merges, each with a new tokenizer, so that no cache is warm."""
    from tokenizers import Tokenizer

    from minillm.tokenizers.exchange import to_hugging_face

    content = to_hugging_face(trained)

    def ours() -> list[list[int]]:
        tokenizer = BPETokenizer(trained.vocab, trained.merges, trained.special_tokens)
        return [tokenizer.encode(text) for text in texts]

    def peer() -> list[list[int]]:
        return [encoding.ids for encoding in Tokenizer.from_str(content).encode_batch(texts)]

    return ours, peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=1, help="threads of the peer; ours has one")
    parser.add_argument("--quick", action="store_true", help="a tenth of the text, one pair")
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if options.threads > 1 else "false"
    n_pairs, n_warmup = (1, 0) if options.quick else (7, 1)
    vocab_size = 2_000 if options.quick else 10_000
    text = corpus(CORPUS_BYTES // 10 if options.quick else CORPUS_BYTES)
    texts = documents(text)
    n_megabytes = len(text.encode()) / 1e6

    our_seconds, peer_seconds = paired_seconds(
        lambda: BPETokenizer.train(texts, vocab_size), lambda: peer_training(texts, vocab_size), n_pairs, n_warmup
    )
    training = median_ratio(our_seconds, peer_seconds)
    print(f"training {n_megabytes:.2f} MB: ours {min(our_seconds):.2f} s, peer {min(peer_seconds):.2f} s (best)")

    ours, peer = encoding_pair(texts, BPETokenizer.train(texts, vocab_size))
    if ours() != peer():
        raise SystemExit("the two encode differently: the comparison would mean nothing")
    our_seconds, peer_seconds = paired_seconds(ours, peer, n_pairs, n_warmup)
    encoding = median_ratio(our_seconds, peer_seconds)
    speeds = [n_megabytes / min(seconds) for seconds in (our_seconds, peer_seconds)]
    print(f"encoding: ours {speeds[0]:.1f} MB/s, peer {speeds[1]:.1f} MB/s (best)")

    name = f"tokenizers, {options.threads} thread"
    print_claims(
        [
            Claim(f"BPE training, {n_megabytes:.1f} MB, vocab {vocab_size}", name, training, 0.85, 1.25),
            Claim(f"BPE encoding, cold cache, {n_megabytes:.1f} MB", f"{name}, encode_batch", encoding, 1.5, 2.5),
        ]
    )


if __name__ == "__main__":
    main()
