import random

import pytest

from sae_core.tokens_text import display_strings

ALPHABET = "a é 中文語 😀🐋👩‍👩‍👧 \n\t\0ß½﷽ \U0010ffff"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([b"the", b" wife"], ["the", " wife"]),
        ([b"\xe4\xb8", b"\xad"], ["中", ""]),
        ([b"\xe4", b"\xb8", b"\xad", b"!"], ["中", "", "", "!"]),
        ([b"\xf0\x9f", b"\x98", b"\x80"], ["😀", "", ""]),
        ([b"a\xe4", b"\xb8\xad\xe6", b"\x96\x87b"], ["a中", "文", "b"]),  # ends one character, begins the next
        ([b"\xe4\xb8", b"", b"\xad"], ["中", "", ""]),
        ([b"\xb8\xad", b"x"], ["\ufffd", "x"]),  # the window begins within a character
        ([b"x", b"\xf0\x9f"], ["x", "\ufffd"]),  # and ends within one
        ([b"a\xff\xfe\xfdb", b"c"], ["a\ufffdb", "c"]),
        ([b"a\xff", b"\xfe", b"b"], ["a\ufffd", "\ufffd", "b"]),
        ([b"\xe4", b"a", b"\xb8\xad"], ["\ufffd", "a", "\ufffd"]),
        ([b"\xff\xe4\xb8", b"\xad\xff"], ["\ufffd中", "\ufffd"]),
        ([b"\xffa\xff"], ["\ufffda\ufffd"]),
        ([b"\xed\xa0\x80"], ["\ufffd"]),  # half a surrogate pair is no UTF-8
    ],
)
def test_each_token_shows_the_characters_that_begin_in_it(tokens: list[bytes], expected: list[str]) -> None:
    assert display_strings(tokens) == expected


def test_any_split_of_any_text_joins_to_the_text() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(12)))
        data = text.encode()
        cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randrange(10)))
        tokens = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        shown = display_strings(tokens)
        assert len(shown) == len(tokens)
        assert "".join(shown) == text == data.decode("utf-8", errors="replace")
        starts = [len(data[:end].decode("utf-8", errors="ignore")) for end in [*cuts, len(data)]]
        assert len(starts) == len(shown)


def test_any_bytes_give_the_valid_characters_in_order() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        data = b"".join(rng.choice([b"a", "中".encode(), "😀".encode(), bytes([rng.randrange(256)])]) for _ in range(8))
        cuts = sorted(rng.choices(range(len(data) + 1), k=4))
        tokens = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        shown = display_strings(tokens)
        assert len(shown) == len(tokens)
        assert "".join(shown).replace("\ufffd", "") == data.decode("utf-8", errors="ignore")
