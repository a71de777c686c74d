"""HTML to text with the standard library's parser: what a reader of the page would see, a line per block."""

import re
from html.parser import HTMLParser

BLOCKS = frozenset(
    "address article aside blockquote br dd details div dl dt figcaption figure footer form h1 h2 h3 h4 h5 h6 header "
    "hr li main nav ol option p pre section summary table td th title tr ul".split()
)
UNSEEN = frozenset("head noscript script style svg template".split())
STRAY = re.compile(r"<(?=[^<>]*(?:<|\Z))")  # no tag: another one begins, or the page ends, before it is closed
DECLARATION = re.compile(r"<![^<>]*>")  # <!DOCTYPE html>; the parser stumbles over some that are malformed


def html_to_text(html: str) -> str:
    """The words of a page: no tags, no scripts, no styles, character references resolved, each block on its own line.

    White space inside a block becomes one space, lines without words are left out. Broken HTML is read as far as it can
    be: a "<" that is never closed is text, and a script or comment that is never closed takes the rest with it. The
    time is proportional to the length whatever the page holds; the parser alone takes quadratic time for many open "<".

    Args:
        html: a page or a piece of one; text without tags comes back with its white space joined.

    Returns:
        The lines, joined by line ends.

    Example:
        >>> html_to_text("<h1>A</h1><p>Bread &amp;\\n butter<script>x = 1</script><br>jam</p>")
        'A\\nBread & butter\\njam'
    """
    reader = _TextReader()
    reader.feed(STRAY.sub("&lt;", DECLARATION.sub("", without_comments(html))))
    reader.close()
    return reader.text()


def without_comments(html: str) -> str:
    """The page without what stands between <!-- and -->; a comment that is never closed ends with the page.

    Example:
        >>> without_comments("a<!-- <b> -->c")
        'ac'
    """
    first, *others = html.split("<!--")
    return first + "".join(other.partition("-->")[2] for other in others)


class _TextReader(HTMLParser):
    """Collects what is seen."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.inside: str | None = None
        self.depth = 0

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if self.inside is None and tag in UNSEEN:
            self.inside, self.depth = tag, 1
        elif tag == self.inside:
            self.depth += 1
        elif tag in BLOCKS:
            self.pieces.append("\n")

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        if tag in BLOCKS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.depth -= 1
            self.inside = self.inside if self.depth else None
        elif tag in BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if self.inside is None:
            self.pieces.append(re.sub(r"\s", " ", data))

    def text(self) -> str:
        lines = (" ".join(line.split()) for line in "".join(self.pieces).split("\n"))
        return "\n".join(line for line in lines if line)
