"""What is kept of typed texts is bounded, and what has not been touched for longest goes first."""

import torch

from sae_core.prefixes import KeyValues, Prefix, Prefixes


def make_prefix(*token_ids: int, numbers: int = 8) -> Prefix:
    key_values = KeyValues(((torch.zeros(1, 1, numbers, 1), torch.zeros(1, 1, numbers, 1)),))
    return Prefix(token_ids=token_ids, key_values=key_values, rows=tuple(((), ()) for _ in token_ids))


def test_the_shared_prefix_ends_at_the_first_other_token() -> None:
    prefix = make_prefix(5, 6, 7)
    assert [prefix.shared_with(ids) for ids in ((5, 6, 7), (5, 6, 7, 8), (5, 6), (5, 9, 7), (1,), ())] == [
        3,
        3,
        2,
        1,
        0,
        0,
    ]


def test_what_is_taken_is_not_kept() -> None:
    prefixes = Prefixes()
    prefixes.keep("a", make_prefix(1))
    assert prefixes.n_bytes == 64
    assert prefixes.take("a") is not None and prefixes.take("a") is None
    assert (len(prefixes), prefixes.n_bytes) == (0, 0)


def test_over_the_bytes_the_longest_untouched_goes_first() -> None:
    prefixes = Prefixes(max_bytes=130)
    for session in ("a", "b", "a", "c"):
        prefixes.keep(session, make_prefix(1))
    assert (len(prefixes), prefixes.n_bytes) == (2, 128)
    assert prefixes.take("b") is None and prefixes.take("a") is not None
    prefixes.keep("large", make_prefix(1, numbers=100))
    assert len(prefixes) == 0 and prefixes.n_bytes == 0


def test_nothing_is_kept_beyond_its_age() -> None:
    now = [0.0]
    prefixes = Prefixes(max_age=10, clock=lambda: now[0])
    prefixes.keep("a", make_prefix(1))
    now[0] = 6.0
    prefixes.keep("b", make_prefix(1))
    now[0] = 11.0
    assert prefixes.take("a") is None and prefixes.take("b") is not None
