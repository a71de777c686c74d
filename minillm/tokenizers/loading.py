"""Reading a tokenizer file without knowing its kind."""

from pathlib import Path

from minillm.errors import TokenizerError
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.bytes import ByteTokenizer
from minillm.tokenizers.chars import CharTokenizer
from minillm.tokenizers.tokenizer import Tokenizer, read_settings
from minillm.tokenizers.wordpiece import WordPieceTokenizer
from minillm.tokenizers.words import WordTokenizer

KINDS = {
    tokenizer.kind: tokenizer
    for tokenizer in (ByteTokenizer, CharTokenizer, WordTokenizer, WordPieceTokenizer, BPETokenizer)
}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer of any kind that `save` wrote.

    Raises:
        TokenizerError: if the file is missing, truncated, changed, foreign, or of a kind this library does not know.
    """
    settings = read_settings(path)
    kind = settings.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise TokenizerError(f"{path} holds a tokenizer of kind {kind!r}, known are {sorted(KINDS)}")
    return KINDS[kind].from_file_settings(path, settings)
