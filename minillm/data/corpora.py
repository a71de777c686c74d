"""Corpora by name: our own stories, the running Python's documentation, the made world, and a few public sets."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from minillm.data.fetch import fetch, user_cache_folder
from minillm.data.reading import DOCUMENT_SEPARATOR, ReadReport, read_documents
from minillm.errors import ConfigError, DataError

SPLITS = ("train", "validation")
TINYSHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINYSHAKESPEARE_BYTES = 1_115_394


def repository_data_folder() -> Path:
    """The folder data/ of the clone that this package runs from; it need not exist."""
    return Path(__file__).resolve().parents[2] / "data"


@dataclass(frozen=True)
class CorpusSettings:
    """How to open a named corpus; each corpus reads only what it needs."""

    split: str
    seed: int
    n_bytes: int
    data_folder: Path
    cache_folder: Path


@dataclass(frozen=True)
class Corpus:
    """One line of description and the function that opens it."""

    description: str
    open: Callable[[CorpusSettings], Iterator[str]]
    has_splits: bool = False


def documents(
    source: str | Path,
    split: str = "train",
    seed: int = 0,
    n_bytes: int = 2_000_000,
    errors: str = "strict",
    field: str = "text",
    separator: str = DOCUMENT_SEPARATOR,
    report: ReadReport | None = None,
    data_folder: Path | None = None,
    cache_folder: Path | None = None,
) -> Iterator[str]:
    """The documents of a named corpus, or of a file, folder or glob pattern.

    Args:
        source: one of `corpus_names()`, or a path; a name wins over a file of that name (write ./NAME for the file).
        split: "train" or "validation"; only the public sets that come split (tinystories, wikitext-2) have both.
        seed: for tinyworld: which world of stories.
        n_bytes: for tinyworld: stop after the first story that reaches this many UTF-8 bytes in all.
        errors: for paths: "strict" or "replace", see `read_documents`.
        field: for paths: the key of the text in JSON lines.
        separator: for paths: the line between two documents of a plain text.
        report: for paths: counts files, documents and replacements.
        data_folder: where the story files lie; None means the folder data/ of this clone.
        cache_folder: where downloads go; None means the user's cache folder.

    Returns:
        An iterator of str, in the same order every time.

    Raises:
        DataError: if the name is unknown and no such path exists, or the text cannot be read or downloaded.
        ConfigError: if `split` is unknown, or the corpus has no such part.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    corpus = CORPORA.get(str(source))
    if split != "train" and (corpus is None or not corpus.has_splits):
        raise ConfigError(f"{source} comes in one piece, without a {split} part; read it and use split_documents")
    if corpus is None:
        return _documents_at(source, errors, field, separator, report)
    settings = CorpusSettings(
        split,
        seed,
        n_bytes,
        repository_data_folder() if data_folder is None else Path(data_folder),
        user_cache_folder() if cache_folder is None else Path(cache_folder),
    )
    return corpus.open(settings)


def _documents_at(
    source: str | Path, errors: str, field: str, separator: str, report: ReadReport | None
) -> Iterator[str]:
    looks_like_name = not any(sign in str(source) for sign in "/\\.*?[")
    if looks_like_name and not Path(source).exists():
        raise DataError(
            f"unknown corpus {str(source)!r}: it is neither a known name ({', '.join(CORPORA)}) "
            f"nor an existing path (tried {Path(source).absolute()})"
        )
    return read_documents(source, errors, field, separator, report)


def corpus_names() -> dict[str, str]:
    """Name -> one-line description of every corpus that `documents` knows."""
    return {name: corpus.description for name, corpus in CORPORA.items()}


def story_documents(settings: CorpusSettings, language: str) -> Iterator[str]:
    """The stories written for this project, one document each, from data/stories_LANGUAGE.txt.

    Args:
        settings: `data_folder` says where.
        language: "en" or "zh".

    Raises:
        DataError: if the file is missing, as it is where the package was installed without a clone.
    """
    path = settings.data_folder / f"stories_{language}.txt"
    if not path.exists():
        raise DataError(
            f"{path} does not exist: the stories come with a clone of the project, not with an installed package; "
            "clone it and install with pip install -e ., or name a text of your own"
        )
    return read_documents(path)


def both_stories(settings: CorpusSettings) -> Iterator[str]:
    """The English stories, then the Chinese ones."""
    return chain(story_documents(settings, "en"), story_documents(settings, "zh"))


def python_documentation(settings: CorpusSettings) -> Iterator[str]:
    """The help topics of the running Python, one document each, sorted by topic name, every paragraph told once.

    About 0.46 million characters of real English; amount and wording vary with the Python version. Nearly a fifth of it
    stands in two topics or more, and a model would be validated on what it has learned by heart: a paragraph stays
    in the shortest topic that has it.

    Args:
        settings: not used; the text lies in the standard library.

    Raises:
        DataError: if this Python was built without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            f"this Python ({sys.executable}) has no documentation topics (module pydoc_data); "
            "use another corpus, or a Python that was installed whole"
        ) from error
    return without_repeats({name: topics[name] for name in sorted(topics)})


def without_repeats(texts: dict[str, str], n_letters: int = 40) -> Iterator[str]:
    """The texts in their order, without paragraphs that a shorter one of them has; texts left empty are left out.

    Args:
        texts: name -> text; paragraphs are separated by empty lines and compared without regard to white space.
        n_letters: paragraphs this short may repeat (headings, "Note:").

    Example:
        >>> list(without_repeats({"long": "a b\\n\\nc", "short": "a  b"}, n_letters=0))
        ['c', 'a  b']
    """
    told: set[str] = set()
    kept: dict[str, str] = {}
    for name in sorted(texts, key=lambda name: (len(texts[name]), name)):
        paragraphs = [(" ".join(paragraph.split()), paragraph) for paragraph in texts[name].split("\n\n")]
        new = [paragraph for key, paragraph in paragraphs if len(key) <= n_letters or key not in told]
        told.update(key for key, _ in paragraphs)
        kept[name] = "\n\n".join(new)
    return (kept[name] for name in texts if kept[name].strip())


def made_world(settings: CorpusSettings, language: str) -> Iterator[str]:
    """Stories of the made world whose true entropy is known, until `n_bytes` are reached.

    Args:
        settings: `seed` chooses the stories, `n_bytes` ends them (the last story is whole).
        language: "english" or "chinese"; the same seed gives the same stories in both.
    """
    from minillm.data.tinyworld import World, world_config

    stories = World(world_config("demo")).stories(settings.seed)
    return until_bytes((getattr(story, language).text for story in stories), settings.n_bytes)


def world_with_feelings(settings: CorpusSettings) -> Iterator[str]:
    """Short stories of the made world in which people feel and show it, for a base model that is adapted later.

    Args:
        settings: as in `made_world`.
    """
    from minillm.data.feelings import BASE_WORLD, unlabelled
    from minillm.data.tinyworld import World

    return until_bytes(unlabelled(World(BASE_WORLD), settings.seed), settings.n_bytes)


def until_bytes(texts: Iterable[str], n_bytes: int) -> Iterator[str]:
    """Whole texts, up to and including the one that reaches `n_bytes` of UTF-8 in all.

    Example:
        >>> list(until_bytes(["ab", "é", "cd"], 3))
        ['ab', 'é']
    """
    if n_bytes < 1:
        raise ConfigError(f"n_bytes must be at least 1, not {n_bytes}")
    n_so_far = 0
    for text in texts:
        yield text
        n_so_far += len(text.encode("utf-8"))
        if n_so_far >= n_bytes:
            return


def tinyshakespeare(settings: CorpusSettings) -> Iterator[str]:
    """1,115,394 bytes of plays as one document, fetched once and checked by SHA-256."""
    folder = settings.cache_folder / "tinyshakespeare"
    return read_documents(fetch(TINYSHAKESPEARE_URL, TINYSHAKESPEARE_SHA256, TINYSHAKESPEARE_BYTES, folder))


def hub_rows(load: Callable[[], Iterable[dict]], what: str, size: str) -> Iterator[str]:
    """The field "text" of every row that `load` gives, with one clear sentence where it cannot.

    Args:
        load: opens the set, for example a call of `datasets.load_dataset` with everything filled in.
        what: the set's name for the error message.
        size: how much there is to download, for the error message.

    Raises:
        DataError: if the set is neither in the cache nor to be had from the network.
    """
    try:
        rows = load()
    except ImportError as error:
        raise DataError(f"{what} needs the package datasets ({error}); install it with pip install datasets") from error
    except Exception as error:  # the hub's client raises many unrelated kinds when there is no network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{what} ({size}) is not in the cache and cannot be downloaded ({type(error).__name__}: {reason}); "
            "check the network, or use a corpus that needs none, such as stories or python-docs"
        ) from error
    return (row["text"] for row in rows)


def tinystories(settings: CorpusSettings) -> Iterator[str]:
    """Short stories in a small vocabulary (Eldan and Li 2023, arXiv:2305.07759), one document each."""

    def load() -> Iterable[dict]:
        from datasets import load_dataset

        cache = str(settings.cache_folder / "hub")
        return load_dataset("roneneldan/TinyStories", split=settings.split, cache_dir=cache)

    return hub_rows(load, "tinystories", "about 1 GB")


def wikitext(settings: CorpusSettings) -> Iterator[str]:
    """Wikipedia articles (Merity et al. 2016, arXiv:1609.07843, raw form), one document each."""

    def load() -> Iterable[dict]:
        from datasets import load_dataset

        cache = str(settings.cache_folder / "hub")
        return load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=settings.split, cache_dir=cache)

    return articles(hub_rows(load, "wikitext-2", "about 5 MB"))


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Join WikiText's lines to articles; an article begins with a title line such as " = Robert Boulter = ".

    Section titles have more equals signs (" = = Career = = ") and do not begin an article.

    Args:
        lines: one per row of the set, with or without the line end.

    Returns:
        An iterator of articles, each beginning with its title.

    Example:
        >>> list(articles([" = A = \\n", " text\\n", " = = Life = = \\n", " = B = \\n"]))
        [' = A = \\n text\\n = = Life = = \\n', ' = B = \\n']
    """
    article: list[str] = []
    for line in lines:
        stripped = line.strip()
        is_title = stripped.startswith("= ") and stripped.endswith(" =") and not stripped.startswith("= =")
        if is_title and any(part.strip() for part in article):
            yield "".join(article)
            article = []
        article.append(line if line.endswith("\n") else line + "\n")
    if any(part.strip() for part in article):
        yield "".join(article)


CORPORA: dict[str, Corpus] = {
    "stories-en": Corpus("English stories written for this project", lambda s: story_documents(s, "en")),
    "stories-zh": Corpus("Chinese stories written for this project", lambda s: story_documents(s, "zh")),
    "stories": Corpus("both, the English ones first", both_stories),
    "python-docs": Corpus("the running Python's own help topics, about 0.38 MB", python_documentation),
    "tinyworld-en": Corpus("made stories of known entropy, in English", lambda s: made_world(s, "english")),
    "tinyworld-zh": Corpus("the same stories in Chinese", lambda s: made_world(s, "chinese")),
    "tinyworld-feelings": Corpus("made stories, in English, that tell what people feel", world_with_feelings),
    "tinyshakespeare": Corpus("plays, one document (download, 1,115,394 bytes)", tinyshakespeare),
    "tinystories": Corpus("short stories for children (download, about 1 GB)", tinystories, has_splits=True),
    "wikitext-2": Corpus("Wikipedia articles (download, about 5 MB)", wikitext, has_splits=True),
}
