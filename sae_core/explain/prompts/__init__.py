"""What a language model is told, and how its answers are read. The files `*.md` beside this one are the instructions.

The instructions are the system's message. Texts of a corpus only ever stand inside a JSON string of the user's message,
and marks are signs that none of the texts has, so that no text can end its own string, mark its own tokens, or add a
text to a list. Whatever an answer says, it is only read for a label or for numbers.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from sae_core.errors import AnswerError
from sae_core.explain.material import Material
from sae_core.explain.records import Trial
from sae_core.explain.scoring import spread
from sae_core.records import Feature

Message = dict[str, str]

EXAMPLES = 15  # that a label is made from
SHOWN_PROMOTED = 8
LEVELS = 10  # that activations are rounded to
LONGEST_LABEL = 160  # characters
_MARKS = (("<<", ">>"), ("⟦", "⟧"), ("«", "»"), ("{{", "}}"), ("⟪", "⟫"), ("【", "】"), ("⦗", "⦘"), ("⧼", "⧽"))
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)


class Explanation(NamedTuple):
    label: str
    certainty: float | None  # as the model says itself; None where it does not


@cache
def version() -> str:
    """Of all instructions: the number that stands in them, and a digest that changes with every word."""
    texts = [_file(name) for name in ("explain", "detection", "fuzzing")]
    return f"{texts[0].split()[1]}.{hashlib.sha256(''.join(texts).encode()).hexdigest()[:8]}"


def explaining(feature: Feature, found: Material) -> list[Message]:
    """Asks for a label."""
    trials = spread(found.positives, EXAMPLES)
    trials.sort(key=lambda trial: -max(trial.activations))
    open_, close = _marks(trials)
    scale = max(feature.max_activation, *(max(trial.activations) for trial in trials))
    data = {
        "examples": [
            {
                "text": _marked(trial, [at for at, value in enumerate(trial.activations) if value], open_, close),
                "activations": [
                    [trial.tokens[at], round(LEVELS * value / scale)]
                    for at, value in enumerate(trial.activations)
                    if value
                ],
            }
            for trial in trials
        ],
        "promoted_tokens": [token.token for token in feature.promoted_tokens[:SHOWN_PROMOTED]],
    }
    return _messages("explain", data, open_, close)


def detecting(label: str, trials: Sequence[Trial]) -> list[Message]:
    """Asks in which texts the feature fires."""
    return _messages("detection", _listed(label, ["".join(trial.tokens) for trial in trials]))


def fuzzing(label: str, trials: Sequence[Trial]) -> list[Message]:
    """Asks in which texts the marks are right."""
    open_, close = _marks(trials, label)
    return _messages(
        "fuzzing", _listed(label, [_marked(trial, trial.marked, open_, close) for trial in trials]), open_, close
    )


def read_explanation(answer: str) -> Explanation:
    """The label in an answer, on one line. Raises AnswerError where there is none."""
    for found in reversed(list(_json_values(answer))):
        if isinstance(found, dict) and isinstance(found.get("label"), str):
            label = " ".join("".join(c if c.isprintable() else " " for c in found["label"]).split())
            label = label.strip(" \"'“”.")[:LONGEST_LABEL].rstrip()
            if label:
                return Explanation(label, _share(found.get("certainty")))
    raise AnswerError("The model's answer has no label in it.")


def read_choice(answer: str, n: int) -> list[bool | None]:
    """Which of n texts an answer names; None for each where it cannot be read, or names a text that there is not."""
    values = list(_json_values(answer))
    named = [value["fires"] for value in values if isinstance(value, dict) and "fires" in value]
    bare = [value for value in values if isinstance(value, list)]
    chosen = named[-1] if named else bare[0] if len(bare) == 1 else None  # models like to think before they answer
    if isinstance(chosen, list) and all(_is_number(number, n) for number in chosen):
        return [number in chosen for number in range(1, n + 1)]
    return [None] * n


def _share(found: Any) -> float | None:
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if is_number and 0 <= found <= 1 else None


def _is_number(number: Any, n: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= n


def _json_values(answer: str) -> Iterator[Any]:
    """The JSON objects and lists that stand in a text, wherever prose or a fence is around them."""
    answer = _THOUGHT.sub("", answer)
    decoder, at = json.JSONDecoder(), 0
    while match := re.compile(r"[{\[]").search(answer, at):
        try:
            found, at = decoder.raw_decode(answer, match.start())
        except ValueError:
            at = match.start() + 1
            continue
        except RecursionError:  # a thousand brackets within each other are no answer, and take long to look into
            return
        yield found


def _listed(label: str, texts: Sequence[str]) -> dict[str, object]:
    return {"feature": label, "texts": [{"number": n, "text": text} for n, text in enumerate(texts, start=1)]}


def _messages(name: str, data: object, open_: str = "", close: str = "") -> list[Message]:
    instructions = _file(name).split("\n\n", 1)[1]
    return [
        {"role": "system", "content": Template(instructions).substitute(open=open_, close=close)},
        {"role": "user", "content": json.dumps(data, ensure_ascii=False)},
    ]


def _marks(trials: Sequence[Trial], label: str = "") -> tuple[str, str]:
    """Signs that no text has."""
    known = label + "\n".join("".join(trial.tokens) for trial in trials)
    for open_, close in _MARKS:
        if open_ not in known and close not in known:
            return open_, close
    number = next(n for n in range(len(known)) if f"[[{n}|" not in known and f"|{n}]]" not in known)
    return f"[[{number}|", f"|{number}]]"


def _marked(trial: Trial, places: Sequence[int], open_: str, close: str) -> str:
    """The text with tokens marked; those that follow each other together."""
    marked = set(places)
    parts = []
    for at, token in enumerate(trial.tokens):
        before = open_ if at in marked and at - 1 not in marked else ""
        after = close if at in marked and at + 1 not in marked else ""
        parts.append(before + token + after)
    return "".join(parts)


@cache
def _file(name: str) -> str:
    return (Path(__file__).parent / f"{name}.md").read_text(encoding="utf-8")
