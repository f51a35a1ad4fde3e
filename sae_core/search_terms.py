"""Texts and searches as the terms by which both databases find features. Standard library only.

A term is a word without case, or a single sign: "_", "%", "😀", and every character of a script that writes no spaces
between words. Both databases only know words of letters and digits, and differ in what they take for one; so a term is
written as "t" and then each character, those beyond a to z and 0 to 9 by their number ("ü" is "u00fc"). Thus SQLite's
FTS5 and PostgreSQL's full text see the same plain words, and find the same.

A search is words in any order, all of which must stand somewhere; of a word with two letters or more, the last ones may
be missing. Terms that touch ("a_b", "中文"), and what stands in "double quotes", must follow each other.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

FIELDS = ("label", "promotes", "fires_on", "examples")  # in which a search can look
_LETTERS = dict(zip(FIELDS, "abcd", strict=True))
LONGEST_TERM = 64  # characters; what is longer is cut, in texts and in searches
# Thai, Lao, Tibetan, Burmese, Hangul, Khmer, Japanese, Chinese: found character by character.
_SPACELESS = (
    "\u0e00-\u0fff\u1000-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TERM = re.compile(rf"[^\W_{_SPACELESS}]+|\S")
_SHORTEST_OPEN = 2  # a "t" and one letter: that is a word of its own
BREAK = " t "  # between two texts, so that no phrase reaches over it: no term is a "t" alone
_CHUNK = re.compile(r'"([^"]*)"|([^\s"]+)')


def clean_text(text: str) -> str:
    """`text` without what PostgreSQL cannot hold: NUL, and halves of characters from odd file names."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def terms(text: str) -> list[str]:
    """The terms of a text, in its order."""
    return [_written(term) for term in _TERM.findall(unicodedata.normalize("NFKC", clean_text(text)).casefold())]


def joined_terms(texts: Iterable[str]) -> str:
    """The terms of several texts as they are stored, each text once, with a break between them."""
    return BREAK.join(dict.fromkeys(found for text in texts if (found := " ".join(terms(text)))))


class Phrase(NamedTuple):
    """Terms that follow each other. Of the last one letters may be missing, if `is_open`."""

    terms: tuple[str, ...]
    is_open: bool


def phrases(q: str) -> list[Phrase]:
    """What a reader's search asks for; nothing if it has no term."""
    found = []
    for quoted, chunk in _CHUNK.findall(q):
        own = terms(quoted or chunk)
        if own:
            found.append(Phrase(tuple(own), is_open=not quoted and len(own[-1]) > _SHORTEST_OPEN))
    return found


def fts5_query(wanted: Sequence[Phrase], field: str | None) -> str:
    """The search in the language of SQLite's FTS5."""
    query = " AND ".join(f'"{" ".join(phrase.terms)}"' + " *" * phrase.is_open for phrase in wanted)
    return query if field is None else f"{field} : ({query})"


def ts_query(wanted: Sequence[Phrase], field: str | None) -> str:
    """The search in the language of PostgreSQL's full text.

    There each term stands twice: as it is, and with its field's letter in place of the "t". PostgreSQL knows how
    frequent each is, and would not know it of a term in one field only.
    """
    first = "t" if field is None else _LETTERS[field]
    found = []
    for phrase in wanted:
        own = [first + term[1:] for term in phrase.terms]
        found.append(f"({' <-> '.join(own)}{':*' * phrase.is_open})")
    return " & ".join(found)


@lru_cache(maxsize=1 << 16)
def _written(term: str) -> str:
    term = term[:LONGEST_TERM]
    if term.isascii() and term.isalnum():
        return "t" + term
    return "t" + "".join(c if c.isascii() and c.isalnum() else f"u{ord(c):04x}" for c in term)
