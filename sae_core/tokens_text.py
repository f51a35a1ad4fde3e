"""Raw token bytes -> one display string per token: between the tokenizer's vocabulary and every page with tokens.

Byte-level tokenizers cut characters: "中" may be two tokens, an emoji three. A character stands whole at the first of
its tokens and the rest of them show "", so that joining the strings gives the text. Standard library only.
"""

from collections.abc import Sequence

REPLACEMENT = "\ufffd"


def display_strings(tokens: Sequence[bytes]) -> list[str]:
    """One string per token of a run of consecutive tokens; joined, they are the decoded text.

    Bytes that are no UTF-8, also half a character at either end of the run, show as U+FFFD: one for each unbroken
    stretch of them within a token.
    """
    try:
        return [token.decode() for token in tokens]  # most runs: nothing is cut
    except UnicodeDecodeError:
        return _strings_of_cut(tokens)


def _strings_of_cut(tokens: Sequence[bytes]) -> list[str]:
    shown: list[str] = []
    at = 0
    while at < len(tokens):
        text = whole_text(tokens[at])
        if text is not None:
            shown.append(text)
            at += 1
            continue
        # A token that is UTF-8 by itself never shares a character with its neighbours, so it ends the cut stretch.
        end = at + 1
        while end < len(tokens) and (not tokens[end] or whole_text(tokens[end]) is None):
            end += 1
        shown.extend(_shared_characters(tokens[at:end]))
        at = end
    return shown


def whole_text(token: bytes) -> str | None:
    """The token as text; None if it has a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def _shared_characters(tokens: Sequence[bytes]) -> list[str]:
    """The slow, general case: every character goes to the token that holds its first byte."""
    data = b"".join(tokens)
    owner = [index for index, token in enumerate(tokens) for _ in token]  # byte offset -> token
    shown = [""] * len(tokens)
    offset = 0
    last_broken = -2  # offset of the latest byte that was no UTF-8
    while offset < len(data):
        try:
            text, broken_until = data[offset:].decode(), len(data)
        except UnicodeDecodeError as error:
            text, broken_until = data[offset : offset + error.start].decode(), offset + error.end
        for character in text:
            shown[owner[offset]] += character
            offset += len(character.encode())
        while offset < broken_until:
            if offset != last_broken + 1 or owner[offset] != owner[last_broken]:
                shown[owner[offset]] += REPLACEMENT
            last_broken = offset
            offset += 1
    return shown
