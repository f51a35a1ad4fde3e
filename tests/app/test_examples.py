"""Tokens as pages print them: steps, windows, signs, lines."""

import dataclasses

import pytest

from app.examples import example_groups, example_view, one_line, step, token_views, with_signs
from sae_core.records import Example
from sae_core.store import Store


def make_example(tokens: list[str], *, position: int = 0, activations: list[float] | None = None) -> Example:
    values = activations or [0.0] * len(tokens)
    return Example(
        feature_index=1,
        context_id=2,
        source="/usr/lib/python3/asyncio/tasks.py:12",
        band=0,
        rank=0,
        position=position,
        activation=values[position],
        tokens=tuple(tokens),
        token_ids=tuple(range(len(tokens))),
        activations=tuple(values),
    )


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(0, 0), (-1, 0), (float("nan"), 0), (1e-9, 1), (0.1, 1), (0.11, 2), (1, 10), (1.99, 20), (2, 20), (5, 20)],
)
def test_step_is_a_share_of_the_scale_with_a_floor(activation: float, expected: int) -> None:
    assert step(activation, scale=2) == expected


def test_step_without_a_scale_is_none() -> None:
    assert step(1, scale=0) == 0
    assert step(1, scale=float("nan")) == 0


def test_windows_hold_every_token_once_in_order() -> None:
    example = make_example([f" {i}" for i in range(128)], position=60)
    view = example_view(example, scale=1)
    assert [run.reach for run in view.runs] == ["full", "medium", "short", "medium", "full"]
    assert [token.token_id for run in view.runs for token in run.tokens] == list(range(128))
    short = next(run for run in view.runs if run.reach == "short")
    assert any(token.is_peak for token in short.tokens)
    assert (view.cut_before, view.cut_after) == ("short medium", "short medium")


@pytest.mark.parametrize("position", [0, 1, 30, 126, 127])
@pytest.mark.parametrize("n", [1, 2, 12, 128])
def test_windows_hold_every_token_wherever_the_peak_is(n: int, position: int) -> None:
    example = make_example([f" {i}" for i in range(n)], position=min(position, n - 1))
    view = example_view(example, scale=1)
    assert [token.token_id for run in view.runs for token in run.tokens] == list(range(n))


def test_windows_do_not_begin_or_end_with_blank_lines() -> None:
    tokens = [" a"] * 20 + ["\n", "    "] + [" b"] * 12 + [" PEAK"] + [" c"] * 9 + ["\n\n"] + [" d"] * 60
    view = example_view(make_example(tokens, position=tokens.index(" PEAK")), scale=1)
    short = next(run for run in view.runs if run.reach == "short").tokens
    assert short[0].text == " b"
    assert short[-1].text == " c"


def test_line_breaks_indentation_away_and_splits_at_the_peak() -> None:
    example = make_example(["<bos>", "x", " =", "\n        ", " self", ".", "y", "\t\tz"], position=4)
    line = one_line(example, scale=1, has_bos=True)
    assert "".join(token.text for token in line.before) == "x =↵"
    assert "".join(token.text for token in line.after) == " self.y z"


def test_line_is_short_whatever_the_tokens() -> None:
    line = one_line(make_example(["word " * 3] * 128, position=64), scale=1)
    assert len("".join(token.text for token in line.before + line.after)) < 150


def test_signs_can_be_taken_back() -> None:
    assert with_signs("a b\n\tc") == "a·b↵\n⇥\tc"
    views = token_views(make_example([" a", "b"]), scale=1, signs=True)
    assert [(view.text, view.original) for view in views] == [("·a", " a"), ("b", None)]


def test_the_start_token_is_special() -> None:
    example = make_example(["<bos>", "a", " b"])
    assert example_view(example, scale=1, has_bos=True).runs[0].tokens[0].is_special
    assert not example_view(example, scale=1).runs[0].tokens[0].is_special


def test_source_is_shown_by_its_end() -> None:
    assert example_view(make_example(["a"]), scale=1).short_source == "asyncio/tasks.py:12"
    assert example_view(dataclasses.replace(make_example(["a"]), source="a.txt"), scale=1).short_source == "a.txt"


def test_bands_are_titled_by_their_activations(store: Store) -> None:
    detail = store.feature("demo", 0)
    feature = dataclasses.replace(detail.feature, max_activation=11.5)
    titles = [group.title for group in example_groups(feature, detail.examples)]
    assert titles == ["Top examples", "8 to 11.5", "4 to 8", "2 to 4", "1 to 2", "Below 1", "Random firings"]
    older = dataclasses.replace(feature, mean_square=None)  # from an index made before revision 0003: fifths
    titles = [group.title for group in example_groups(older, detail.examples)]
    assert titles[1:-1] == ["9.2 to 11.5", "6.9 to 9.2", "4.6 to 6.9", "2.3 to 4.6", "Below 2.3"]
