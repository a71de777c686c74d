"""`python -m minillm.data.checksums` brings the sizes and checksums in data/README.md up to date with the files."""

import re
from pathlib import Path

from minillm.data.corpora import repository_data_folder
from minillm.data.fetch import sha256_of
from minillm.errors import DataError

ROW = re.compile(r"^\| `(?P<name>[^`|]+)` \| (?P<what>[^|]+) \| [^|]* \| [^|]* \|$", re.MULTILINE)


def with_true_checksums(table: str, folder: Path) -> str:
    """Rewrite the last two cells of every row "| `file` | what it is | bytes | SHA-256 |".

    Args:
        table: Markdown; what is no such row stays as it is.
        folder: where the named files lie.

    Returns:
        The Markdown with the files' true sizes and checksums.

    Raises:
        DataError: if a row names a file that is not there.
    """

    def row(match: re.Match) -> str:
        path = folder / match["name"]
        if not path.is_file():
            raise DataError(f"the table names {match['name']}, which is not in {folder}; write it or delete the row")
        return f"| `{match['name']}` | {match['what']} | {path.stat().st_size:,} | `{sha256_of(path)}` |"

    return ROW.sub(row, table)


def main() -> None:
    """Rewrite the table of this clone."""
    readme = repository_data_folder() / "README.md"
    readme.write_text(with_true_checksums(readme.read_text(encoding="utf-8"), readme.parent), encoding="utf-8",
    newline="\n")


if __name__ == "__main__":
    main()
