"""Let the model go on with a prompt while features are pushed: baseline, steered at one or more doses, and a control.

    1. The columns are the rows of one batch, so that they cost one forward pass a token (`edits` changes each its way).
    2. The prompt is run once; after it each step runs one token, with the keys and values kept. The edit is in place at
       every step: a hook that works on the prompt alone, a known mistake, would steer little and not say so.
    3. Special tokens are never changed: the SAE has not read any in training.
    4. A column that is not changed at all is the baseline, and is not run a second time.
    5. At the end the model reads every text once more without any change: how surprised is it?

`steer` is a generator without hooks between its parts, so that other work can be done on the model meanwhile.
"""

import codecs
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, pairwise
from typing import Any

import torch
from torch import Tensor

from sae_core.causal.edits import ColumnEdit, Edits
from sae_core.causal.effects import check_predicts
from sae_core.causal.records import (
    Column,
    Finish,
    Kind,
    Steering,
    SteerPart,
    SteerRequest,
    SteerStart,
    SteerStep,
)
from sae_core.causal.sampling import sample
from sae_core.errors import NotFoundError, PromptError, PromptTooLongError
from sae_core.probe import Prober
from sae_core.records import ProbeToken

Plan = tuple[Kind, float]


def steer(
    prober: Prober, asked: SteerRequest, *, max_tokens: int = 1024, max_seconds: float = 60.0, keeps: bool = True
) -> Iterator[SteerPart]:
    """The start, a step for each token, and the whole. Ends early, and says so, after `max_seconds`.

    `keeps` False makes keys and values anew at every step: slow, and what the tests compare with.
    """
    started = time.monotonic()
    check_predicts(prober.model)
    ids = _prompt_ids(prober, asked, max_tokens=max_tokens)
    plan = _plan(asked)
    rows = [_edit(asked, kind, dose) for kind, dose in plan]
    own = [i for i, row in enumerate(rows) if i == 0 or row.changes]  # 4.
    row_of = [own.index(i) if i in own else 0 for i in range(len(plan))]
    edits = Edits(prober.sae, [rows[i] for i in own], seed=asked.seed)
    tokens = _prompt_tokens(prober, ids)
    yield SteerStart(tokens=tokens, columns=tuple(plan))

    writing = _Writing(prober, asked, ids, edits, keeps=keeps)
    while (added := writing.step(is_late=time.monotonic() - started > max_seconds)) is not None:
        yield SteerStep(added=tuple(added[row] for row in row_of))

    surprises = writing.surprises()
    written = [writing.column(row, surprise=surprises[row]) for row in range(len(own))]
    columns = tuple(replace(written[row_of[i]], kind=kind, dose=dose) for i, (kind, dose) in enumerate(plan))
    yield Steering(request=asked, tokens=tokens, columns=columns, seconds=time.monotonic() - started)


class _Writing:
    """The rows of a batch that grow by a token with each step."""

    def __init__(self, prober: Prober, asked: SteerRequest, ids: list[int], edits: Edits, *, keeps: bool) -> None:
        self._prober, self._asked, self._edits, self._keeps = prober, asked, edits, keeps
        n = len(edits.columns)
        self._prompt = ids
        self._ids = torch.tensor([ids], device=prober.model.device).expand(n, -1)  # (B, T), written ones behind
        self._special = torch.tensor(sorted(prober.frame.special_ids), device=prober.model.device)
        self._cached: Any = None
        self._n_run = 0  # tokens whose keys and values are kept
        self._draws = torch.Generator().manual_seed(asked.seed)
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(n)]
        self._texts = [""] * n
        self._finish: list[Finish | None] = [None] * n
        self._lengths = [0] * n
        self._kl: list[float | None] = [None] * n
        self._ends = _end_ids(prober)

    def step(self, *, is_late: bool) -> list[str] | None:
        """What each row grows by; None where all have ended."""
        if is_late or max(self._lengths) >= self._asked.n_tokens:
            self._end_all("time" if is_late else "length")
        if all(self._finish):
            return None
        logits = self._logits()
        if max(self._lengths) == 0:
            self._kl = _divergences(logits)
        draw = float(torch.rand((), generator=self._draws, dtype=torch.float64))
        chosen = sample(logits, temperature=self._asked.temperature, top_p=self._asked.top_p, draw=draw)
        self._ids = torch.cat([self._ids, chosen[:, None]], dim=1)
        return [self._grow(row, token_id) for row, token_id in enumerate(chosen.tolist())]

    @torch.inference_mode()
    def _logits(self) -> Tensor:
        """Of the next token, (B, vocab)."""
        model = self._prober.model
        start = self._n_run if self._keeps else 0
        new = self._ids[:, start:]
        where = ~torch.isin(new, self._special)
        if self._asked.where == "after":
            where[:, : max(0, len(self._prompt) - 1 - start)] = False
        self._edits.where = where
        hooks = (self._prober.info.hook_name, self._prober.info.target_hook_name)
        head = model.module.get_output_embeddings()
        with model.edited(hooks, self._edits), model.before(head, lambda states: states[:, -1:]):
            output = model.run(new, cached=self._cached, keeps=self._keeps)
        if self._keeps:
            self._cached, self._n_run = output.past_key_values, self._ids.shape[1]
        logits: Tensor = output.logits[:, -1].to(model.device).float()
        if not bool(logits.isfinite().any(dim=1).all()) or bool(logits.isnan().any()):
            raise PromptError("With this strength the model's numbers overflow; choose a smaller one.")
        return logits

    def _grow(self, row: int, token_id: int) -> str:
        if self._finish[row]:
            return ""
        self._lengths[row] += 1
        is_end = token_id in self._ends
        known = self._prober.vocabulary.tokens
        data = b"" if is_end or token_id >= len(known) else known[token_id]
        added = self._decoders[row].decode(data, final=is_end)
        if is_end:
            self._finish[row] = "end"
        self._texts[row] += added
        return added

    def _end_all(self, why: Finish) -> None:
        for row, finish in enumerate(self._finish):
            if finish is None:
                self._finish[row] = why
                self._texts[row] += self._decoders[row].decode(b"", final=True)

    def _written(self, row: int) -> list[int]:
        at = len(self._prompt)
        written: list[int] = self._ids[row, at : at + self._lengths[row]].tolist()
        return written

    def surprises(self) -> list[float | None]:
        """Nats per written token of each row, to the model as it is."""
        n = len(self._lengths)
        longest = len(self._prompt) + max(self._lengths)
        ids, where = self._ids[:, :longest], torch.zeros(n, longest, dtype=torch.bool, device=self._ids.device)
        for row, length in enumerate(self._lengths):
            where[row, len(self._prompt) - 1 : len(self._prompt) - 1 + length] = True
        parts = self._prober.model.predictions(
            ids, torch.ones_like(where), where=where, hook_name=self._prober.info.hook_name, replacements=[None]
        )
        following = self._ids.roll(-1, dims=1)[:, :longest][where]
        log_probs = torch.cat([part for (part,) in parts]) if bool(where.any()) else torch.zeros(0, 1)
        losses = -log_probs.gather(1, following[:, None])[:, 0] if len(following) else torch.zeros(0)
        return [
            float(part.mean()) if len(part) else None for part in torch.split(losses, self._lengths)
        ]  # fmt: skip

    def column(self, row: int, *, surprise: float | None) -> Column:
        """A row as it stands; whose kind and dose it is says the plan."""
        written, tally = self._written(row), self._edits.tallies[row]
        return Column(
            kind="baseline",
            dose=0.0,
            text=self._texts[row],
            token_ids=tuple(written),
            finish=self._finish[row] or "length",
            push_norm=tally.push_norm,
            push_ratio=tally.push_ratio,
            measured=tally.measured(reads_back=not self._prober.sae.is_transcoder),
            kl=self._kl[row] if row else None,
            surprise=surprise,
            repeats=_repeats(written),
        )


def _plan(asked: SteerRequest) -> list[Plan]:
    """Baseline, each dose, and the control of the full dose."""
    plan: list[Plan] = [("baseline", 0.0), *(("steered", dose) for dose in asked.doses)]
    return [*plan, ("control", 1.0)]


def _edit(asked: SteerRequest, kind: Kind, dose: float) -> ColumnEdit:
    return ColumnEdit(pushes=asked.pushes if kind != "baseline" else (), dose=dose, is_control=kind == "control")


def _prompt_ids(prober: Prober, asked: SteerRequest, *, max_tokens: int) -> list[int]:
    """The prompt as the model reads it, special tokens included; raises if it or the answer is too long."""
    for push in asked.pushes:
        if push.feature_index >= prober.sae.d_sae:
            raise NotFoundError(f'The SAE "{prober.info.slug}" has no feature {push.feature_index}.')
    plain = prober.token_ids(asked.prompt, max_tokens=max_tokens)
    ids = _chat_ids(prober, asked, max_tokens=max_tokens) if asked.chat else [*prober.frame.prefix, *plain]
    longest = prober.model.longest_context
    if longest is not None and len(ids) + asked.n_tokens > longest:
        raise PromptTooLongError(
            f"The prompt has {len(ids):,} tokens and {asked.n_tokens:,} are to follow, "
            f"but the model has places for {longest:,}; shorten one of them."
        )
    return ids


def _chat_ids(prober: Prober, asked: SteerRequest, *, max_tokens: int) -> list[int]:
    """The conversation as the model's own template writes it, up to where its answer begins."""
    tokenizer = prober.model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            "This model has no chat template, so it was not made for chats; send the prompt as plain text."
        )
    messages = [
        {"role": role, "content": said}
        for role, said in zip(cycle(("user", "assistant")), (*asked.turns, asked.prompt))
    ]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever the template's own rules raise
        said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise PromptError(f"The model's chat template refuses this conversation ({said}); change it.") from error
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) > max_tokens:
        raise PromptTooLongError(
            f"The conversation has {len(ids):,} tokens, over the limit of {max_tokens:,}; take out its oldest turns."
        )
    return ids


def _prompt_tokens(prober: Prober, ids: list[int]) -> tuple[ProbeToken, ...]:
    n_prefix = len(prober.frame.prefix)
    if tuple(ids[:n_prefix]) == prober.frame.prefix:
        return prober.bare_tokens(ids[n_prefix:])
    return prober.bare_tokens(ids)[n_prefix:]


def _end_ids(prober: Prober) -> frozenset[int]:
    """Tokens with which the model says that it has finished."""
    stated = getattr(getattr(prober.model.module, "generation_config", None), "eos_token_id", None)
    ids = {prober.model.tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])}
    return frozenset(token_id for token_id in ids if token_id is not None)


def _divergences(logits: Tensor) -> list[float | None]:
    """KL of each row from the first, nats."""
    log_probs = logits.cpu().double().log_softmax(dim=1)
    baseline = log_probs[0]
    return [max(0.0, float((baseline.exp() * (baseline - row)).sum())) for row in log_probs]


def _repeats(token_ids: Sequence[int]) -> float | None:
    """The share of pairs of neighbouring tokens that stood there before: 1 − distinct-2 (Li et al. 2016)."""
    pairs = list(pairwise(token_ids))
    return 1 - len(set(pairs)) / len(pairs) if pairs else None
