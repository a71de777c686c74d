"""`minillm data`: list the texts, or look at one."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from minillm.config import setting
from minillm.errors import ConfigError, DataError


@dataclass(frozen=True)
class Settings:
    """List the named texts; or give a name, file, folder or pattern, and see its size, documents and first lines."""

    source: str = setting(
        "",
        "name of a text, or a file, folder or glob pattern (txt, jsonl, .gz); nothing lists the names",
        positional=True,
    )
    show: int = setting(2, "how many documents to show the beginning of")
    limit: int = setting(0, "read at most this many documents; 0 reads all")
    out: Path | None = setting(None, "also write the documents to this text file, lines of three asterisks between")

    def __post_init__(self) -> None:
        if self.show < 0 or self.limit < 0:
            raise ConfigError(f"show and limit must be 0 or more, not {self.show} and {self.limit}")


def run(settings: Settings) -> None:
    """Print the list of texts or the report on one."""
    from minillm.data.corpora import corpus_names, documents

    if not settings.source:
        for name, text in corpus_names().items():
            print(f"{name:16} {text}")
        return
    found = list(islice(documents(settings.source), settings.limit or None))
    if not found:
        raise DataError(f"{settings.source} has no documents; give a text that is not empty")
    sizes = sorted(len(document.encode()) for document in found)
    characters = sum(map(len, found))
    print(f"{settings.source}: {len(found):,} documents, {characters:,} characters, {sum(sizes):,} bytes; "
          f"{sizes[0]:,} / {sizes[len(sizes) // 2]:,} / {sizes[-1]:,} bytes in the smallest, middle and largest; "
          f"{len(set().union(*found))} different characters")
    for document in found[: settings.show]:
        print(f"\n{document[:400].rstrip()}{' ...' if len(document) > 400 else ''}")
    if settings.out is not None:
        write_documents(found, settings.out)
        print(f"\nwrote {settings.out}")


def write_documents(documents: list[str], path: Path) -> None:
    """One text file that `read_documents` cuts into the same documents, but for line ends around them.

    Raises:
        DataError: if the file cannot be written.
    """
    text = "\n\n***\n\n".join(document.strip("\n") for document in documents) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); choose another --out") from error
