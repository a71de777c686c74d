"""One id per character of a training text."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from minillm.errors import DataError, TokenizerError
from minillm.tokenizers.pretokenize import split_specials_stream
from minillm.tokenizers.reading import training_texts
from minillm.tokenizers.tokenizer import END_OF_TEXT, TableTokenizer, check_parts, check_text, number_specials

UNKNOWN = "<unk>"


class CharTokenizer(TableTokenizer):
    """Ids 0, 1, ... are the characters in the order of their code points, special tokens follow.

    Example:
        >>> tokenizer = CharTokenizer.train("hello")
        >>> tokenizer.characters, tokenizer.encode("hole")
        (['e', 'h', 'l', 'o'], [1, 3, 2, 0])
    """

    kind = "chars"

    def __init__(
        self,
        characters: Iterable[str],
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        unknown: str | None = None,
    ) -> None:
        """Make the tokenizer of a set of characters.

        Args:
            characters: each a string of length 1, all different; their order gives the ids.
            special_tokens: strings that ordinary text never produces; they get the ids after the characters'.
            unknown: the special token that stands for every other character, such as "<unk>" (it is added if it is
                not among `special_tokens`); None refuses them. What it stood for is lost in decoding.

        Raises:
            TokenizerError: if a character is not one, or is there twice.
        """
        self.characters = list(characters)
        for character in self.characters:
            if len(check_text(character)) != 1:
                raise TokenizerError(f"a character must be a string of length 1, got {character!r}")
        self._id_of = {character: token_id for token_id, character in enumerate(self.characters)}
        if len(self._id_of) < len(self.characters):
            raise TokenizerError(f"characters must differ from one another, got {self.characters}")
        strings = _with_unknown(special_tokens, unknown)
        self.unknown = unknown
        vocab = {token_id: character.encode() for character, token_id in self._id_of.items()}
        super().__init__(vocab, number_specials(strings, len(vocab)))

    @classmethod
    def train(
        cls,
        source: str | Path | Iterable[str],
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        unknown: str | None = None,
    ) -> Self:
        """Take every character that occurs in a corpus.

        Args:
            source: the text (str), its file (Path), or documents (iterable of str).
            special_tokens: strings that are taken out of the corpus first.
            unknown: see the class.

        Raises:
            DataError: if the corpus is empty, or the file is missing or not UTF-8.
        """
        special_tokens = list(number_specials(special_tokens, 0))
        counts: Counter[str] = Counter()
        for parts in training_texts(source):
            for part, is_special in split_specials_stream(parts, special_tokens):
                counts.update("" if is_special else part)
        if not counts:
            raise DataError("the training corpus is empty: there is no character to learn")
        return cls(sorted(counts), special_tokens, unknown)

    def encode(self, text: str, errors: str = "strict") -> list[int]:
        """One id per character.

        Args:
            text: text of known characters only, unless the tokenizer has an `unknown` token.
            errors: what to do about lone surrogates: "strict" raises, "replace" reads U+FFFD.

        Raises:
            TokenizerError: naming the first unknown character and its position.
        """
        return list(self.encode_iterable([text], errors))

    def encode_iterable(self, texts: Iterable[str], errors: str = "strict") -> Iterator[int]:
        """Lazily, the ids of the text that the parts make when joined."""
        unknown_id = self.special_tokens.get(self.unknown)
        offset = 0
        for text in check_parts(texts, errors):
            for position, character in enumerate(text):
                token_id = self._id_of.get(character, unknown_id)
                if token_id is None:
                    raise TokenizerError(
                        f"character {character!r} (U+{ord(character):04X}) at position {offset + position} is not "
                        f"among the {len(self._id_of)} known ones: train on it, or with unknown={UNKNOWN!r}"
                    )
                yield token_id
            offset += len(text)

    def settings(self) -> dict[str, Any]:
        """Characters, special tokens and the unknown token."""
        return {
            "characters": self.characters,
            "special_tokens": list(self.special_tokens),
            "unknown": self.unknown,
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """The tokenizer that had these settings."""
        return cls(settings["characters"], settings["special_tokens"], settings["unknown"])


def _with_unknown(special_tokens: Iterable[str], unknown: str | None) -> list[str]:
    strings = list(number_specials(special_tokens, 0))
    return strings if unknown is None or unknown in strings else [*strings, unknown]
