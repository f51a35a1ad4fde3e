"""Why the model says a token: what each feature, and all that is no feature, adds to its logit.

    h[t]  = Σ_i a[t, i] · W_dec[i] + b_dec + error[t]      the vector where the SAE writes, on each token t (times the
                                                           token's scale, for an SAE that normalises what it reads)
    g[t]  = d explained / d h[t]                           from one backward pass
    total of feature i   = Σ_t a[t, i] · (g[t] · W_dec[i])
    direct of feature i  = a[p, i] · (u · W_dec[i])        u: from the chosen token p straight through the final norm

The error, b_dec and the vectors of special tokens, which the SAE never reads, have the same two numbers. What is then
missing from the explained number is the row "rest", so that the rows add up to it: for totals, what does not depend on
h in a straight line; for direct effects, what all other parts of the model add.

Attribution patching: Nanda 2023 (neelnanda.io/attribution-patching); with SAEs and their error term: Marks et al. 2024,
arXiv 2403.19647. Direct logit attribution with the norm's scale held: Elhage et al. 2021, transformer-circuits.pub.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_core.causal.effects import Effects, check_predicts, effects
from sae_core.causal.records import Attribution, FeatureEffect, NextToken, OtherEffect
from sae_core.errors import PromptError
from sae_core.probe import Prober
from sae_core.tokens_text import display_strings

SHOWN_FEATURES = 100
SHOWN_PREDICTIONS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A text up to the chosen token, and whose logits after it are asked about."""

    ids: Tensor  # (1, p + 1)
    counts: Tensor  # (p + 1,) bool: tokens that the SAE reads
    position: int
    weights: dict[int, float]  # of the explained number
    found: Effects
    entries: tuple[Tensor, Tensor, Tensor]  # positions, features and activations of the active entries (E,)
    added: Tensor  # (E, d_out): what each of them adds to the reconstruction
    constant: Tensor  # (p + 1, d_out): what the reconstruction has without any of them

    @property
    def explained(self) -> float:
        return sum(weight * float(self.found.logits[token_id]) for token_id, weight in self.weights.items())


def attribute(
    prober: Prober,
    text: str,
    *,
    token: int | None = None,
    target: str | None = None,
    against: str | None = None,
    max_tokens: int = 1024,
    max_features: int = SHOWN_FEATURES,
) -> Attribution:
    """The parts of the next token's logit after `token`; by default the last token, and what the model finds likeliest.

    `target` and `against` are the text of one token, or `#` and its id. Raises PromptError where they are not.
    """
    started = time.monotonic()
    asked = question(prober, text, token=token, target=target, against=against, max_tokens=max_tokens)
    total, direct = entry_effects(asked)
    features = _features(asked, total, direct)
    others = _others(asked, features, max_features=max_features)
    probabilities = asked.found.logits.softmax(dim=0)
    target_id, *rest = asked.weights
    return Attribution(
        slug=prober.info.slug,
        text=text,
        tokens=prober.bare_tokens(prober.token_ids(text, max_tokens=max_tokens)),
        position=asked.position,
        target=next_tokens(prober, probabilities, [target_id])[0],
        against=next_tokens(prober, probabilities, rest)[0] if rest else None,
        explained=asked.explained,
        predictions=next_tokens(prober, probabilities, probabilities.topk(SHOWN_PREDICTIONS).indices.tolist()),
        n_features=len(features),
        features=tuple(features[:max_features]),
        others=others,
        seconds=time.monotonic() - started,
    )


def question(
    prober: Prober, text: str, *, token: int | None, target: str | None, against: str | None, max_tokens: int
) -> Question:
    """Runs the model forward and back on what is asked."""
    check_predicts(prober.model)
    ids = prober.token_ids(text, max_tokens=max_tokens)
    tokens = prober.bare_tokens(ids)
    position = len(tokens) - 1 if token is None else token
    if position >= len(tokens):
        raise PromptError(f"The text has tokens 0 to {len(tokens) - 1}, and no token {position}; pick one of them.")
    upto = torch.tensor([[t.token_id for t in tokens[: position + 1]]], device=prober.model.device)
    hooks = (prober.info.hook_name, prober.info.target_hook_name)
    target_id = _token_id(prober, target) if target else _likeliest(prober, upto)
    weights = {target_id: 1.0}
    if against:
        against_id = _token_id(prober, against)
        if against_id == target_id:
            raise PromptError("The two tokens to compare are the same; choose another, or leave the second out.")
        weights[against_id] = -1.0
    found = effects(prober.model, upto, hook_names=hooks, position=position, weights=weights)
    counts = torch.tensor([not t.is_special for t in tokens[: position + 1]], device=upto.device)
    code = prober.sae.encode(found.read_acts)
    rows, features, values = code.active()
    kept = counts[rows]
    rows, features, values = rows[kept], features[kept], values[kept]
    added = values[:, None] * prober.sae.W_dec[features]
    return Question(
        ids=upto,
        counts=counts,
        position=position,
        weights=weights,
        found=found,
        entries=(rows, features, values),
        added=added if code.row_scale is None else added * code.row_scale[rows],
        constant=prober.sae.decode(code.with_values(torch.zeros_like(code.values))),
    )


def next_tokens(prober: Prober, probabilities: Tensor, token_ids: list[int]) -> tuple[NextToken, ...]:
    return tuple(
        NextToken(
            token=(text := token_text(prober, token_id)),
            name=text if _ids_of(prober, text) == [token_id] else f"#{token_id}",
            token_id=token_id,
            probability=float(probabilities[token_id]),
        )
        for token_id in token_ids
    )


def token_text(prober: Prober, token_id: int) -> str:
    """One token by itself, as a page shows it; an id that stands for nothing (models have spare ones) as #id."""
    known = prober.vocabulary.tokens
    return display_strings([known[token_id]])[0] if token_id < len(known) and known[token_id] else f"#{token_id}"


@torch.no_grad()
def entry_effects(asked: Question) -> tuple[Tensor, Tensor | None]:
    """Total and direct effect (E,), float64, of each active entry."""
    rows, added = asked.entries[0], asked.added.cpu().double()
    total = (added * asked.found.gradient[rows].cpu().double()).sum(dim=1)
    if asked.found.readout is None:
        return total, None
    return total, (added @ asked.found.readout.cpu().double()) * (rows == asked.position).cpu()


def _features(asked: Question, total: Tensor, direct: Tensor | None) -> list[FeatureEffect]:
    """One row for each feature, the largest total first."""
    rows, indices, values = (column.tolist() for column in asked.entries)
    entries: dict[int, list[tuple[float, float, int, float]]] = {}  # total, direct, position, activation
    directs = [0.0] * len(rows) if direct is None else direct.tolist()
    for feature_index, *entry in zip(indices, total.tolist(), directs, rows, values, strict=True):
        entries.setdefault(feature_index, []).append(tuple(entry))
    found = []
    for feature_index, own in entries.items():
        strongest = max(own, key=lambda entry: abs(entry[0]))
        whole = sum(entry[0] for entry in own)
        found.append(
            FeatureEffect(
                feature_index=feature_index,
                total=whole,
                direct=None if direct is None else sum(entry[1] for entry in own),
                activation=next((entry[3] for entry in own if entry[2] == asked.position), 0.0),
                position=strongest[2],
                activation_there=strongest[3],
                share_there=strongest[0] / whole if whole else 0.0,
            )
        )
    return sorted(found, key=lambda row: (-abs(row.total), row.feature_index))


@torch.no_grad()
def _others(asked: Question, features: list[FeatureEffect], *, max_features: int) -> tuple[OtherEffect, ...]:
    """The rows that are no feature; with the shown features they add up to the explained number."""
    h, gradient, counts = asked.found.write_acts.cpu().double(), asked.found.gradient.cpu().double(), asked.counts.cpu()
    constant = asked.constant.cpu().double()
    error = (h - constant).index_add(0, asked.entries[0].cpu(), -asked.added.cpu().double())
    vectors = {"error": error * counts[:, None], "bias": constant * counts[:, None], "special": h * ~counts[:, None]}
    hidden = features[max_features:]
    readout = None if asked.found.readout is None else asked.found.readout.cpu().double()
    totals = {name: float((gradient * vector).sum()) for name, vector in vectors.items()}
    directs = {name: float(readout @ vector[asked.position]) for name, vector in vectors.items() if readout is not None}
    totals["others"] = sum(row.total for row in hidden)
    directs["others"] = sum(row.direct or 0.0 for row in hidden)
    shown = features[:max_features]
    totals["rest"] = asked.explained - sum(row.total for row in shown) - sum(totals.values())
    directs["rest"] = asked.explained - sum(row.direct or 0.0 for row in shown) - sum(directs.values())
    names = [name for name in ("others", "error", "bias", "special", "rest") if name != "others" or hidden]
    return tuple(
        OtherEffect(name=name, total=totals[name], direct=None if readout is None else directs[name])  # type: ignore[arg-type]
        for name in names
        if name != "special" or not bool(counts.all())
    )


@torch.no_grad()
def _likeliest(prober: Prober, ids: Tensor) -> int:
    with prober.model.before(prober.model.module.get_output_embeddings(), lambda states: states[:, -1:]):
        return int(prober.model.run(ids).logits[0, -1].argmax())


def _token_id(prober: Prober, text: str) -> int:
    """The id of a text that is one token, with the blank before it if it is one only so; `#` and a number is an id."""
    n_tokens = len(prober.vocabulary.tokens)
    if text.startswith("#") and text[1:].isascii() and text[1:].isdigit():
        if int(text[1:]) >= n_tokens:
            raise PromptError(f"The model's tokens are #0 to #{n_tokens - 1}, and there is no {text}; choose another.")
        return int(text[1:])
    for spelling in (text, f" {text}"):
        ids = _ids_of(prober, spelling)
        if len(ids) == 1:
            return ids[0]
    parts = _ids_of(prober, text)
    shown = ", ".join(f"“{token_text(prober, part)}”" for part in parts[:6])
    raise PromptError(f"“{text[:60]}” is {len(parts)} tokens to this model ({shown}); give one of them.")


def _ids_of(prober: Prober, text: str) -> list[int]:
    ids: list[int] = prober.model.tokenizer.encode(text, add_special_tokens=False)
    return ids
