"""`minillm tokenize`: train a tokenizer, or show how one cuts a text."""

import time
from dataclasses import dataclass
from pathlib import Path

from minillm.config import setting
from minillm.errors import ConfigError

KINDS = ("bpe", "wordpiece", "chars", "words", "bytes")
PATTERNS = ("gpt2", "gpt4")


@dataclass(frozen=True)
class Settings:
    """Train a tokenizer on a text and save it; with --text, show how it (or the one of --load) cuts that text."""

    data: str = setting("stories", "name, file, folder or glob pattern of the text to learn from")
    kind: str = setting("bpe", "what a token is", choices=KINDS)
    vocab_size: int = setting(1024, "number of token ids; chars and bytes need what they need")
    pattern: str = setting("gpt2", "how bpe splits text into words first", choices=PATTERNS)
    out: Path = setting(Path("tokenizer.json"), "where to save it")
    load: Path | None = setting(None, "use this saved tokenizer instead of training one")
    text: str = setting("", "a text to cut, shown with | between tokens")

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ConfigError(f"vocab_size is {self.vocab_size}; it must be at least 1")


def run(settings: Settings) -> None:
    """Train or load, report bytes per token, show the pieces."""
    from minillm.data.corpora import documents
    from minillm.tokenizers.loading import load_tokenizer

    if settings.load is not None:
        tokenizer = load_tokenizer(settings.load)
        print(f"{settings.load}: {tokenizer.kind}, {tokenizer.vocab_size:,} ids")
    else:
        texts = list(documents(settings.data))
        start = time.perf_counter()
        tokenizer = train_tokenizer(settings.kind, texts, settings.vocab_size, settings.pattern)
        seconds = time.perf_counter() - start
        n_bytes, n_tokens = sum(len(text.encode()) for text in texts), sum(1 for _ in tokenizer.encode_iterable(texts))
        tokenizer.save(settings.out)
        print(f"learned {tokenizer.vocab_size:,} ids ({tokenizer.kind}) from {n_bytes:,} bytes in {seconds:.2f} s; "
              f"{n_bytes / n_tokens:.2f} bytes per token; saved {settings.out}")
    if settings.text:
        ids = tokenizer.encode(settings.text)
        print("|".join(tokenizer.decode([token_id]) for token_id in ids))
        print(*ids)


def train_tokenizer(kind: str, texts: list[str], vocab_size: int, pattern: str = "gpt2"):
    """Learn a tokenizer of the named kind; every one knows the end-of-text token.

    Args:
        kind: "bpe", "wordpiece", "chars", "words" or "bytes".
        texts: the documents to learn from.
        vocab_size: number of ids for bpe, wordpiece and words, at least 257 for bpe.
        pattern: "gpt2" or "gpt4", for bpe.
    """
    from minillm.tokenizers.bpe import BPETokenizer
    from minillm.tokenizers.bytes import ByteTokenizer
    from minillm.tokenizers.chars import CharTokenizer
    from minillm.tokenizers.wordpiece import WordPieceTokenizer
    from minillm.tokenizers.words import WordTokenizer

    if kind == "bpe":
        return BPETokenizer.train(texts, vocab_size, pattern=pattern)
    if kind == "wordpiece":
        return WordPieceTokenizer.train(texts, vocab_size)
    if kind == "words":
        return WordTokenizer.train(texts, vocab_size)
    return CharTokenizer.train(texts) if kind == "chars" else ByteTokenizer()
