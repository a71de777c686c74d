"""minillm: a language model, every part built by hand, tested against trusted implementations.

Import what you need from its home, for example `from minillm.tokenizers.bpe import BPETokenizer`.
Importing `minillm` itself imports nothing heavy.
"""

__version__ = "0.1.0"
