"""Text to token ids and back: bytes, characters, words, WordPiece, byte-level BPE. No torch."""

from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.bytes import ByteTokenizer
from minillm.tokenizers.chars import CharTokenizer
from minillm.tokenizers.exchange import read_gpt2, read_hugging_face, write_hugging_face
from minillm.tokenizers.loading import load_tokenizer
from minillm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from minillm.tokenizers.wordpiece import WordPieceTokenizer
from minillm.tokenizers.words import WordTokenizer

__all__ = [
    "END_OF_TEXT",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Tokenizer",
    "WordPieceTokenizer",
    "WordTokenizer",
    "load_tokenizer",
    "read_gpt2",
    "read_hugging_face",
    "write_hugging_face",
]
