"""The parts a BPE tokenizer is made of, checked: the vocabulary, the merges and the ids of the special tokens."""

from collections import Counter
from collections.abc import Iterable, Mapping

from minillm.errors import TokenizerError
from minillm.tokenizers.bpe_naive import Pair
from minillm.tokenizers.tokenizer import number_specials


def without_specials(
    vocab: Mapping[int, bytes], special_tokens: Iterable[str] | Mapping[str, int]
) -> dict[int, bytes]:
    """The vocabulary without the special tokens whose ids are given."""
    given = special_tokens if isinstance(special_tokens, Mapping) else {}
    specials = {(token_id, string.encode()) for string, token_id in given.items()}
    return {token_id: token for token_id, token in vocab.items() if (token_id, token) not in specials}


def ids_of_tokens(vocab: Mapping[int, bytes]) -> dict[bytes, int]:
    """bytes -> id; a TokenizerError if the types are wrong or two ids have the same bytes."""
    if not all(isinstance(token_id, int) and isinstance(token, bytes) for token_id, token in vocab.items()):
        raise TokenizerError("vocab must map int ids to bytes")
    id_of = {token: token_id for token_id, token in vocab.items()}
    if len(id_of) < len(vocab):
        twice = next(token for token, count in Counter(vocab.values()).items() if count > 1)
        raise TokenizerError(f"the vocabulary has {twice!r} under more than one id")
    return id_of


def byte_ids(id_of: Mapping[bytes, int]) -> list[int]:
    """The ids of the bytes 0 .. 255; a TokenizerError if one is missing."""
    missing = [byte for byte in range(256) if bytes([byte]) not in id_of]
    if missing:
        raise TokenizerError(
            f"the vocabulary lacks {len(missing)} of the 256 single bytes, the first is 0x{missing[0]:02X}: "
            "byte-level BPE needs them all"
        )
    return [id_of[bytes([byte])] for byte in range(256)]


def index_merges(merges: list[Pair], id_of: Mapping[bytes, int]) -> tuple[list[int], dict[tuple[int, int], int]]:
    """What encoding needs of the merges.

    Args:
        merges: pairs of byte strings, first learned first.
        id_of: bytes -> id.

    Returns:
        products: rank -> id of the token that this merge makes.
        ranks: pair of ids -> rank.

    Raises:
        TokenizerError: if a merge is there twice, makes a token without id, or uses one that no earlier merge makes.

    Example:
        >>> index_merges([(b"a", b"b"), (b"ab", b"c")], {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"abc": 4})
        ([3, 4], {(0, 1): 0, (3, 2): 1})
    """
    products: list[int] = []
    ranks: dict[tuple[int, int], int] = {}
    made = {bytes([byte]) for byte in range(256)}
    for rank, (left, right) in enumerate(merges):
        if left not in made or right not in made:
            raise TokenizerError(f"merge {rank} joins {left!r} and {right!r}, but no earlier merge makes one of them")
        if left + right not in id_of:
            raise TokenizerError(f"merge {rank} makes {left + right!r}, which is not in the vocabulary")
        made.add(left + right)
        products.append(id_of[left + right])
        ranks[id_of[left], id_of[right]] = rank
    if len(ranks) < len(merges):
        twice = next(pair for pair, count in Counter(merges).items() if count > 1)
        raise TokenizerError(f"the merge of {twice[0]!r} and {twice[1]!r} is there twice")
    return products, ranks


def place_specials(strings: Iterable[str], id_of: Mapping[bytes, int], ordinary: set[int]) -> dict[str, int]:
    """Ids of special tokens: the one in the vocabulary, unless ordinary text produces it, else a new one."""
    numbered, next_id = {}, max(id_of.values()) + 1
    for string in number_specials(strings, 0):
        present = id_of.get(string.encode())
        if present is None or present in ordinary:
            present, next_id = next_id, next_id + 1
        numbered[string] = present
    return numbered


def check_special_ids(special_tokens: Mapping[str, int], ordinary: set[int]) -> None:
    """Raise a TokenizerError unless every special token has an integer id that no other token has."""
    for string, token_id in special_tokens.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id in ordinary:
            raise TokenizerError(f"special token {string!r} cannot have id {token_id!r}: not an id of its own")
    if len(set(special_tokens.values())) < len(special_tokens):
        raise TokenizerError(f"two special tokens share an id: {dict(special_tokens)}")
