"""One id per word or mark of a training text, and `<unk>` for every other."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from minillm.errors import DataError, TokenizerError
from minillm.tokenizers.pretokenize import cut_stream, ordinary_chunks
from minillm.tokenizers.reading import training_texts
from minillm.tokenizers.tokenizer import END_OF_TEXT, TableTokenizer, check_parts, check_text, number_specials

UNKNOWN = "<unk>"
# A word (with inner apostrophes), another mark, or a whitespace character; the first two with the space before them.
WORD = re.compile(r" ?(?:\w+(?:'\w+)*|[^\w\s])|\s")


class WordTokenizer(TableTokenizer):
    """Words, marks and whitespace; a space belongs to the word or mark after it, so "cat" and " cat" are two tokens.

    Decoding joins the tokens: text of known words comes back exactly. Each unknown word is lost, `<unk>` stands for it
    (with a space before it if the word had one).

    Example:
        >>> tokenizer = WordTokenizer.train("the cat saw the dog.")
        >>> tokenizer.decode(tokenizer.encode("the cat saw the bird."))
        'the cat saw the <unk>.'
    """

    kind = "words"

    def __init__(self, words: Iterable[str], special_tokens: Iterable[str] = (END_OF_TEXT,)) -> None:
        """Make the tokenizer of a list of words.

        Args:
            words: what `split_words` gives, all different; their order gives the ids. The two unknown tokens, "<unk>"
                and " <unk>", get the next ones, special tokens the last.
            special_tokens: strings that ordinary text never produces.

        Raises:
            TokenizerError: if a word is there twice, or is not one word.
        """
        self.words = list(words)
        for word in self.words:
            if split_words(check_text(word)) != [word]:
                raise TokenizerError(f"{word!r} is not one word, mark or space")
        if len(set(self.words)) < len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise TokenizerError(f"the word {twice!r} is there twice")
        self._id_of = {word: token_id for token_id, word in enumerate(self.words)}
        n_words = len(self.words)
        self.unknown_id, self.space_unknown_id = n_words, n_words + 1
        vocab = {token_id: word.encode() for token_id, word in enumerate([*self.words, UNKNOWN, " " + UNKNOWN])}
        super().__init__(vocab, number_specials(special_tokens, n_words + 2))

    @classmethod
    def train(
        cls,
        source: str | Path | Iterable[str],
        vocab_size: int | None = None,
        min_count: int = 1,
        special_tokens: Iterable[str] = (END_OF_TEXT,),
    ) -> Self:
        """Take the most frequent words of a corpus, of equally frequent ones the first in the order of code points.

        Args:
            source: the text (str), its file (Path), or documents (iterable of str).
            vocab_size: the most ids there may be, the two unknown and the special tokens included; None for no limit.
            min_count: leave out words that occur less often.
            special_tokens: strings that are taken out of the corpus first.

        Raises:
            TokenizerError: if `vocab_size` has no room for a single word, or `min_count` is below 1.
            DataError: if the corpus is empty, or the file is missing or not UTF-8.
        """
        special_tokens = list(number_specials(special_tokens, 0))
        n_fixed = 2 + len(special_tokens)
        if vocab_size is not None and vocab_size <= n_fixed:
            raise TokenizerError(f"vocab_size is {vocab_size}, expected over {n_fixed}: two <unk>, specials, a word")
        if min_count < 1:
            raise TokenizerError(f"min_count is {min_count}, expected at least 1")
        counts = count_words(source, special_tokens)
        if not counts:
            raise DataError("the training corpus is empty: there is no word to learn")
        ranked = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
        return cls(ranked if vocab_size is None else ranked[: vocab_size - n_fixed], special_tokens)

    def encode(self, text: str, errors: str = "strict") -> list[int]:
        """One id per word, mark or whitespace character.

        Args:
            text: any text.
            errors: what to do about lone surrogates: "strict" raises a TokenizerError, "replace" reads U+FFFD.
        """
        return self._ids(split_words(check_text(text, errors)))

    def encode_iterable(self, texts: Iterable[str], errors: str = "strict") -> Iterator[int]:
        """Lazily, the ids of the text that the parts make when joined."""
        for words in cut_stream(check_parts(texts, errors), split_words):
            yield from self._ids(words)

    def _ids(self, words: Iterable[str]) -> list[int]:
        unknown = self.unknown_id, self.space_unknown_id
        return [self._id_of.get(word, unknown[word[0] == " "]) for word in words]

    def settings(self) -> dict[str, Any]:
        """Words and special tokens."""
        return {"words": self.words, "special_tokens": list(self.special_tokens)}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """The tokenizer that had these settings."""
        return cls(settings["words"], settings["special_tokens"])


def split_words(text: str) -> list[str]:
    """Cut a text into words, marks and whitespace characters; joined they give it back.

    Args:
        text: any text.

    Returns:
        Words of letters, digits and underscores, with apostrophes inside; single other marks; both with the space
        before them, if there is one; and single whitespace characters.

    Example:
        >>> split_words("It's here,  now")
        ["It's", ' here', ',', ' ', ' now']
    """
    return WORD.findall(text)


def count_words(source: str | Path | Iterable[str], special_tokens: Iterable[str]) -> Counter[str]:
    """How often each word of a corpus occurs; special tokens are taken out first."""
    counts: Counter[str] = Counter()
    for parts in training_texts(source):
        for words in ordinary_chunks(parts, special_tokens, split_words):
            counts.update(words)
    return counts
