"""The byte-level BPE tokenizer: text -> special tokens, chunks, pieces, bytes -> ids, and back."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from minillm.errors import DataError, TokenizerError
from minillm.tokenizers.bpe_indexed import merge_ids, train_merges
from minillm.tokenizers.bpe_naive import Pair
from minillm.tokenizers.bpe_parts import (
    byte_ids,
    check_special_ids,
    ids_of_tokens,
    index_merges,
    place_specials,
    without_specials,
)
from minillm.tokenizers.byte_strings import bytes_of, printable
from minillm.tokenizers.pretokenize import SplitPattern, cut_stream, ordinary_chunks, split_pattern, stretches
from minillm.tokenizers.reading import training_texts
from minillm.tokenizers.tokenizer import END_OF_TEXT, TableTokenizer, check_parts, check_text, number_specials

if TYPE_CHECKING:
    import tiktoken

# The memory of encoded chunks starts afresh beyond this many, and leaves out longer strings: some 50 MB at most.
MAX_REMEMBERED = 1 << 18
MAX_REMEMBERED_CHARACTERS = 64
# Training turns its counts of chunks into counts of pieces when there are this many, so that memory stays bounded.
MAX_COUNTED_CHUNKS = 1 << 20


class BPETokenizer(TableTokenizer):
    """Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019, GPT-2).

    Every text can be encoded, because every byte is a token. Merges join pairs inside a piece (see `pretokenize`), the
    first learned first.

    Example:
        >>> tokenizer = BPETokenizer.train("low lower lowest low", vocab_size=260)
        >>> [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode("low slow")]
        [b'low', b' ', b's', b'low']
        >>> tokenizer.decode(tokenizer.encode("low slow"))
        'low slow'
    """

    kind = "bpe"

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Iterable[Pair],
        special_tokens: Iterable[str] | Mapping[str, int] = (),
        pattern: str = "gpt2",
    ) -> None:
        """Build the tokenizer from its parts.

        Args:
            vocab: id -> bytes. All 256 single bytes, the product of every merge, and possibly the special tokens.
            merges: pairs of byte strings in the order in which they were learned.
            special_tokens: strings that ordinary text never produces, or string -> id. Without ids, one that is
                in `vocab` keeps its id there and the others get the ids after the largest.
            pattern: "gpt2", "gpt4" or a regular expression for the `regex` package.

        Raises:
            TokenizerError: if a byte or the product of a merge is missing from the vocabulary, two ids have the same
                bytes, a merge is there twice or uses a token that no earlier merge makes, or a special token has no id
                of its own.
        """
        if isinstance(special_tokens, Mapping):
            number_specials(special_tokens, 0)
        self.merges = [(left, right) for left, right in merges]
        self._split_pattern: SplitPattern = split_pattern(pattern)
        id_of = ids_of_tokens(without_specials(vocab, special_tokens))
        self._byte_ids = byte_ids(id_of)
        self._products, self._ranks = index_merges(self.merges, id_of)
        if not isinstance(special_tokens, Mapping):            # strings without ids
            special_tokens = place_specials(special_tokens, id_of, {*self._byte_ids, *self._products})
        check_special_ids(special_tokens, {*self._byte_ids, *self._products})
        super().__init__(vocab, special_tokens)
        self.merges_ran_out = False
        self._split = self._split_pattern.splitter()
        self._cut = self._split_pattern.cutter()
        self._ids_of_piece = Memory(self._encode_piece)
        self._ids_of_chunk = Memory(self._encode_chunk)

    @property
    def pattern(self) -> str:
        """The name of the split pattern, or its expression."""
        return self._split_pattern.name

    @property
    def expression(self) -> str:
        """The split pattern as a regular expression."""
        return self._split_pattern.expression

    @classmethod
    def train(
        cls,
        source: str | Path | Iterable[str],
        vocab_size: int,
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        pattern: str = "gpt2",
    ) -> Self:
        """Learn merges from a corpus.

        Ids are 0 .. 255 for the bytes, then one per merge in the order of learning, then the special tokens. The result
        is the same on every run and machine (ties: see `bpe_naive.train_merges`).

        Args:
            source: the text itself (str), the file that holds it (Path, UTF-8), or documents (an iterable of str).
                No merge crosses the border of two documents or a special token.
            vocab_size: the number of ids wanted, special tokens included. When the corpus has no pair left to join,
                training stops early: `vocab_size` of the result is then smaller and its `merges_ran_out` is True.
            special_tokens: strings to cut out of the corpus before counting; they get the last ids.
            pattern: "gpt2", "gpt4" or a regular expression.

        Raises:
            TokenizerError: if `vocab_size` has no room for 256 bytes and the special tokens, or a text is no text.
            DataError: if the corpus is empty, or the file is missing or not UTF-8.
        """
        special_tokens = list(special_tokens) if not isinstance(special_tokens, str) else special_tokens
        n_special = len(number_specials(special_tokens, 0))
        if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < 256 + n_special:
            raise TokenizerError(
                f"vocab_size is {vocab_size!r}, expected an integer of at least {256 + n_special}: "
                f"256 bytes and {n_special} special tokens"
            )
        counts = count_pieces(training_texts(source), special_tokens, split_pattern(pattern))
        if not counts:
            raise DataError("the training corpus is empty: there is no text to learn merges from")
        n_merges = vocab_size - 256 - n_special
        merges = train_merges(counts, n_merges)
        tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
        tokenizer = cls(dict(enumerate(tokens)), merges, special_tokens, pattern)
        tokenizer.merges_ran_out = len(merges) < n_merges
        return tokenizer

    def encode(
        self,
        text: str,
        allowed_special: Collection[str] | Literal["all"] = frozenset(),
        errors: str = "strict",
    ) -> list[int]:
        """The ids of a text.

        Args:
            text: any text. Strings of special tokens in it are ordinary text unless they are allowed.
            allowed_special: special tokens that become their one id, or "all". Only for text the program itself wrote:
                whoever may write an allowed token controls the model.
            errors: what to do about lone surrogates: "strict" raises, "replace" reads U+FFFD.

        Returns:
            Token ids; `decode` gives the text back.

        Raises:
            TokenizerError: for a lone surrogate (with its position), a `text` that is no str, or an unknown special
                token.
        """
        ids: list[int] = []
        for part in self._encode_parts([check_text(text, errors)], allowed_special):
            ids.extend(part)
        return ids

    def encode_iterable(
        self,
        texts: Iterable[str],
        allowed_special: Collection[str] | Literal["all"] = frozenset(),
        errors: str = "strict",
    ) -> Iterator[int]:
        """Lazily encode a text that arrives in parts, such as the lines of a file.

        The ids are those of `encode("".join(texts))`, wherever the text was parted: also inside words, runs of spaces
        and special tokens. Memory stays bounded by the longest stretch without whitespace; with a split pattern other
        than GPT-2's and GPT-4's no safe place to cut is known, and the ids come when the last part has.

        Args:
            texts: the parts, of any length.
            allowed_special: as for `encode`.
            errors: as for `encode`.

        Yields:
            Token ids.
        """
        yield from chain.from_iterable(self._encode_parts(check_parts(texts, errors), allowed_special))

    def _encode_parts(
        self, texts: Iterable[str], allowed_special: Collection[str] | Literal["all"]
    ) -> Iterator[Iterable[int]]:
        """Ids in batches."""
        for stretch in stretches(texts, self._check_allowed(allowed_special)):
            if isinstance(stretch, str):
                yield [self.special_tokens[stretch]]
                continue
            for chunks in cut_stream(stretch, self._cut):
                yield chain.from_iterable(map(self._ids_of_chunk.__getitem__, chunks))

    def _check_allowed(self, allowed_special: Collection[str] | Literal["all"]) -> Collection[str]:
        if allowed_special == "all":
            return self.special_tokens.keys()
        if isinstance(allowed_special, str) or not set(allowed_special) <= self.special_tokens.keys():
            raise TokenizerError(
                f'allowed_special is {allowed_special!r}, expected "all" or some of {list(self.special_tokens)}'
            )
        return allowed_special

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        return tuple(chain.from_iterable(map(self._ids_of_piece.__getitem__, self._split(chunk))))

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        return tuple(self.encode_bytes(piece.encode()))

    def ordinary_vocab(self) -> dict[int, bytes]:
        """id -> bytes of all tokens but the special ones."""
        return without_specials(self.vocab, self.special_tokens)

    def encode_bytes(self, piece: bytes) -> list[int]:
        """The ids of one piece that is not split any further, any bytes; the merges alone decide."""
        return merge_ids([self._byte_ids[byte] for byte in piece], self._ranks, self._products)

    def to_tiktoken(self, name: str = "minillm") -> "tiktoken.Encoding":
        """The same tokenizer in tiktoken, which encodes several times as fast and on several threads.

        tiktoken joins whichever neighbours make the token of the smallest id. For merges that training found this is
        the same; its `encode_ordinary` is our `encode`. (What a pattern of your own does not match, tiktoken drops.)

        Args:
            name: what tiktoken calls it.

        Raises:
            TokenizerError: if the ids do not ascend in the order of the merges, as those of training and GPT-2 do.
        """
        import tiktoken

        ids = [max(self._byte_ids), *self._products]
        if any(first >= second for first, second in pairwise(ids)):
            raise TokenizerError("tiktoken needs ids that ascend in the order of the merges, after those of the bytes")
        ranks = {self.vocab[token_id]: token_id for token_id in [*self._byte_ids, *self._products]}
        return tiktoken.Encoding(
            name, pat_str=self.expression, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )

    def settings(self) -> dict[str, Any]:
        """Pattern, special tokens, vocabulary and merges, each byte string as GPT-2's printable characters."""
        return {
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "vocab": {printable(token): token_id for token_id, token in self.ordinary_vocab().items()},
            "merges": [f"{printable(left)} {printable(right)}" for left, right in self.merges],
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """The tokenizer that had these settings."""
        vocab = {token_id: bytes_of(token) for token, token_id in settings["vocab"].items()}
        merges = [tuple(map(bytes_of, line.split(" "))) for line in settings["merges"]]
        return cls(vocab, merges, settings["special_tokens"], settings["pattern"])


class Memory(dict[str, tuple[int, ...]]):
    """A dict that asks a function for what it does not hold, and starts afresh when it has grown too large."""

    def __init__(self, compute: Callable[[str], tuple[int, ...]], max_entries: int = MAX_REMEMBERED) -> None:
        super().__init__()
        self.compute = compute
        self.max_entries = max_entries

    def __missing__(self, text: str) -> tuple[int, ...]:
        ids = self.compute(text)
        if len(text) <= MAX_REMEMBERED_CHARACTERS:
            if len(self) >= self.max_entries:
                self.clear()
            self[text] = ids
        return ids


def count_pieces(
    texts: Iterable[Iterable[str]], special_tokens: Iterable[str], pattern: SplitPattern
) -> dict[bytes, int]:
    """How often each piece occurs in a corpus.

    Args:
        texts: documents, each as the parts it is read in.
        special_tokens: strings that are taken out first.
        pattern: how to split the rest.

    Returns:
        UTF-8 bytes of the piece -> number of occurrences.
    """
    split, cut = pattern.splitter(), pattern.cutter()
    chunk_counts: Counter[str] = Counter()
    piece_counts: Counter[str] = Counter()

    def count_pieces_of_chunks() -> None:
        once = (chunk for chunk, count in chunk_counts.items() if count == 1)
        piece_counts.update(chain.from_iterable(map(split, once)))    # most chunks: counted in C
        for chunk, count in chunk_counts.items():
            if count > 1:
                for piece in split(chunk):
                    piece_counts[piece] += count
        chunk_counts.clear()

    for parts in texts:
        for chunks in ordinary_chunks(parts, special_tokens, cut):
            chunk_counts.update(chunks)
            if len(chunk_counts) > MAX_COUNTED_CHUNKS:
                count_pieces_of_chunks()
    count_pieces_of_chunks()
    return {piece.encode(): count for piece, count in piece_counts.items()}
