"""Take features out and run the model again: what they did, measured, beside what the gradient predicted.

On every token up to the chosen one, activation · W_dec of each chosen feature is subtracted where the SAE writes. The
error stays as it was: nothing is encoded again after the change, so that no part of the model makes up for it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_core.causal.attribution import Question, entry_effects, question, token_text
from sae_core.causal.records import MAX_ABLATED, AblatedFeature, Ablation, Shift
from sae_core.errors import NotFoundError, PromptError
from sae_core.probe import Prober

SHOWN_SHIFTS = 12


def ablate(
    prober: Prober,
    text: str,
    *,
    features: Sequence[int],
    token: int | None = None,
    target: str | None = None,
    against: str | None = None,
    max_tokens: int = 1024,
) -> Ablation:
    """The next token's distribution with and without the features, of which there may be `MAX_ABLATED`."""
    chosen = tuple(dict.fromkeys(features))
    if not 1 <= len(chosen) <= MAX_ABLATED:
        raise PromptError(f"Between 1 and {MAX_ABLATED} features can be taken out; {len(chosen)} are chosen.")
    for feature_index in chosen:
        if feature_index >= prober.sae.d_sae:
            raise NotFoundError(f'The SAE "{prober.info.slug}" has no feature {feature_index}.')
    asked = question(prober, text, token=token, target=target, against=against, max_tokens=max_tokens)
    alone = [(feature_index,) for feature_index in chosen] if len(chosen) > 1 else []
    logits = _logits_without(prober, asked, [(), chosen, *alone])  # (2 + n, vocab)
    values = [sum(w * float(row[token_id]) for token_id, w in asked.weights.items()) for row in logits]
    predicted = _predicted(asked)
    before, after = logits[0].log_softmax(dim=0), logits[1].log_softmax(dim=0)
    return Ablation(
        feature_indices=chosen,
        before=values[0],
        measured=values[1] - values[0],
        predicted=sum(predicted.get(feature_index, 0.0) for feature_index in chosen),
        kl=max(0.0, float((before.exp() * (before - after)).sum())),
        shifts=_shifts(prober, before.exp(), after.exp(), list(asked.weights)),
        alone=tuple(
            AblatedFeature(
                feature_index=one, measured=value - values[0], predicted=predicted.get(one, 0.0)
            )
            for (one,), value in zip(alone, values[2:], strict=True)
        ),
    )  # fmt: skip


@torch.inference_mode()
def _logits_without(prober: Prober, asked: Question, removed: Sequence[tuple[int, ...]]) -> Tensor:
    """Logits (n, vocab) after the chosen token, each row without other features, from one forward pass."""
    rows, features, _ = asked.entries
    shape = asked.found.write_acts.shape
    taken = torch.zeros(len(removed), *shape, device=asked.ids.device)
    for row, chosen in enumerate(removed):
        is_chosen = torch.isin(features, torch.tensor(chosen, dtype=features.dtype, device=features.device))
        taken[row].index_add_(0, rows[is_chosen], asked.added[is_chosen])
    hooks = (prober.info.hook_name, prober.info.target_hook_name)
    head = prober.model.module.get_output_embeddings()
    with (
        prober.model.edited(hooks, lambda _, write: (write.float() - taken).to(write.dtype)),
        prober.model.before(head, lambda states: states[:, -1:]),
    ):
        logits: Tensor = prober.model.run(asked.ids.expand(len(removed), -1)).logits[:, -1].to(asked.ids.device).float()
    return logits


def _predicted(asked: Question) -> dict[int, float]:
    """Change of the explained number without each feature, as the gradient has it."""
    total, _ = entry_effects(asked)
    found: dict[int, float] = {}
    for feature_index, effect in zip(asked.entries[1].tolist(), total.tolist(), strict=True):
        found[feature_index] = found.get(feature_index, 0.0) - effect
    return found


def _shifts(prober: Prober, before: Tensor, after: Tensor, always: list[int]) -> tuple[Shift, ...]:
    """The likeliest tokens of both, and those that are asked about."""
    largest = torch.maximum(before, after)
    ids = dict.fromkeys([*always, *largest.topk(SHOWN_SHIFTS).indices.tolist()])
    return tuple(
        Shift(
            token=token_text(prober, token_id),
            token_id=token_id,
            before=float(before[token_id]),
            after=float(after[token_id]),
        )
        for token_id in sorted(ids, key=lambda one: -float(largest[one]))
    )
