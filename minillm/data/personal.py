"""E-mail addresses, telephone numbers and network addresses replaced by marks, and how many there were.

Rules like these find what is written in the usual way. "anna at example dot org" stays, and a long article number may
look like a telephone: rules trade one mistake for the other, and names are out of their reach.

Every pattern begins at the edge of a run and has bounded repeats, so that time is proportional to the length of the
text, whatever stands in it.
"""

import re
from collections.abc import Callable

EMAIL_MARK, PHONE_MARK, IP_MARK = "<EMAIL>", "<PHONE>", "<IP>"
EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9_.+%-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w-])",
    re.ASCII,
)
# A plus and a country, an area in parentheses, groups: 8 to 15 digits in all, which `is_phone` counts.
PHONE = re.compile(r"(?<![\w.+:/-])(?:\+|\(?\d)[\d() .-]{6,24}\d(?![\w:/-]|\.\d)", re.ASCII)
DATE = r"\b(?:\d{4}([-. ])\d{1,2}\1\d{1,2}|\d{1,2}([-. ])\d{1,2}\2\d{4})\b"
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\w)", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{2,39}(?![\w:])", re.ASCII)


def replaced(text: str, pattern: re.Pattern, mark: str, fits: Callable[[str], bool]) -> tuple[str, int]:
    """The text with `mark` for every match that `fits`, and how many those were."""
    n_replaced = 0

    def choose(match: re.Match) -> str:
        nonlocal n_replaced
        if not fits(match[0]):
            return match[0]
        n_replaced += 1
        return mark

    return pattern.sub(choose, text), n_replaced


def mask_emails(text: str, mark: str = EMAIL_MARK) -> tuple[str, int]:
    """E-mail addresses replaced, and how many. Addresses with quoted names or letters beyond ASCII are not seen.

    Example:
        >>> mask_emails("Write to anna.b+news@mail.example.org, not to @anna.")
        ('Write to <EMAIL>, not to @anna.', 1)
    """
    return replaced(text, EMAIL, mark, lambda address: not re.search(r"^\.|\.\.|\.@", address))


def is_phone(number: str) -> bool:
    """Whether digits, spaces, dots, hyphens and parentheses can be a telephone number.

    8 to 15 digits (E.164 allows 15). Without a plus there must be 2 to 5 groups of at most 8 digits, or a single one
    of 10 or 11 digits that begins with 0 or 1. What holds a date such as 2024-05-17, a span of years or a decimal
    fraction is none.

    Example:
        >>> [is_phone(number) for number in ("+44 20 7946 0958", "(030) 123-4567", "2024-05-17", "1234567890123456")]
        [True, True, False, False]
    """
    digits = sum(sign.isdigit() for sign in number)
    if not 8 <= digits <= 15 or re.search(r"[ .-]{2}", number) or number.count("(") != number.count(")"):
        return False
    if number[0] == "+":
        return True
    if re.search(DATE, number) or re.fullmatch(r"\d+\.\d+|\d{4} ?- ?\d{4}", number):
        return False
    groups = re.findall(r"\d+", number)
    if len(groups) == 1:
        return digits in (10, 11) and groups[0][0] in "01"
    return len(groups) <= 5 and max(map(len, groups)) <= 8


def mask_phones(text: str, mark: str = PHONE_MARK) -> tuple[str, int]:
    """Telephone numbers replaced, and how many; see `is_phone`.

    Example:
        >>> mask_phones("Call +44 20 7946 0958 or 13800138000 by 2024-05-17; it costs 3.50.")
        ('Call <PHONE> or <PHONE> by 2024-05-17; it costs 3.50.', 2)
    """
    return replaced(text, PHONE, mark, is_phone)


def is_ip(address: str) -> bool:
    """Whether this is a network address, of version 4 (four numbers to 255) or 6, by the standard library.

    Example:
        >>> [is_ip(address) for address in ("192.0.2.7", "256.1.1.1", "2001:db8::1", "12:30")]
        [True, False, True, False]
    """
    from ipaddress import ip_address

    try:
        ip_address(address)
    except ValueError:
        return False
    return address.strip(":") != ""


def mask_ips(text: str, mark: str = IP_MARK) -> tuple[str, int]:
    """Network addresses replaced, and how many. A version number of four parts (1.2.3.4) looks the same and goes too.

    Example:
        >>> mask_ips("From 192.0.2.7 and 2001:db8::1 at 12:30, see 3.11.7.")
        ('From <IP> and <IP> at 12:30, see 3.11.7.', 2)
    """
    text, n_first = replaced(text, IPV4, mark, is_ip)
    text, n_second = replaced(text, IPV6, mark, lambda address: address.count(":") > 1 and is_ip(address))
    return text, n_first + n_second


def mask_personal(text: str) -> tuple[str, int]:
    """E-mail addresses, then network addresses, then telephone numbers replaced by their marks, and how many in all.

    Example:
        >>> mask_personal("a@b.org 192.0.2.7 +44 20 7946 0958")
        ('<EMAIL> <IP> <PHONE>', 3)
    """
    total = 0
    for step in (mask_emails, mask_ips, mask_phones):
        text, count = step(text)
        total += count
    return text, total
