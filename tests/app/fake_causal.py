"""What the fake prober answers where a real one would run the model: numbers that add up, words that follow a seed."""

from collections.abc import Iterator
from dataclasses import replace

from app.causal.jobs import AblateJob, AttributeJob, SteerStream
from sae_core.causal.records import (
    AblatedFeature,
    Ablation,
    Attribution,
    Column,
    FeatureEffect,
    Measured,
    NextToken,
    OtherEffect,
    Shift,
    Steering,
    SteerPart,
    SteerStart,
    SteerStep,
)
from sae_core.errors import PromptError
from sae_core.records import ProbeResult

WORDS = (" king", " <b>", " 中", "\n", " sea")


def fake_attribution(job: AttributeJob, probed: ProbeResult) -> Attribution:
    position = len(probed.tokens) - 1 if job.token is None else job.token
    if position >= len(probed.tokens):
        raise PromptError(f"The text has no token {position}; pick another.")
    found: dict[int, FeatureEffect] = {}
    for at, token in enumerate(probed.tokens[: position + 1]):
        for feature_index, activation in zip(token.feature_indexes, token.activations, strict=True):
            sign = -1 if feature_index % 3 == 0 else 1
            found[feature_index] = FeatureEffect(
                feature_index=feature_index,
                total=sign * activation,
                direct=sign * activation / 2 if at == position else 0.0,
                activation=activation if at == position else 0.0,
                position=at,
                activation_there=activation,
                share_there=1.0,
            )
    rows = sorted(found.values(), key=lambda row: -abs(row.total))
    others = (
        OtherEffect(name="error", total=1.5, direct=0.5),
        OtherEffect(name="bias", total=-0.25, direct=0.25),
        OtherEffect(name="special", total=0.0, direct=0.0),
        OtherEffect(name="rest", total=2.0, direct=3.0),
    )
    return Attribution(
        slug=job.sae.slug,
        text=job.text,
        tokens=tuple(replace(token, feature_indexes=(), activations=()) for token in probed.tokens),
        position=position,
        target=_next(job.target or WORDS[0], 0.4),
        against=_next(job.against, 0.1) if job.against else None,
        explained=sum(row.total for row in (*rows, *others)),
        predictions=tuple(_next(word, 0.4 / (n + 1)) for n, word in enumerate(WORDS)),
        n_features=len(rows),
        features=tuple(rows),
        others=others,
        seconds=0.01,
    )


def fake_ablation(job: AblateJob, probed: ProbeResult) -> Ablation:
    found = fake_attribution(job.question, probed)
    totals = {row.feature_index: row.total for row in found.features}
    alone = [(i, -totals.get(i, 0.0)) for i in job.features]
    return Ablation(
        feature_indices=job.features,
        measured=0.9 * sum(value for _, value in alone),
        predicted=sum(value for _, value in alone),
        before=found.explained,
        kl=0.125,
        shifts=tuple(Shift(token=w, token_id=9, before=0.4 / (n + 1), after=0.2) for n, w in enumerate(WORDS)),
        alone=tuple(AblatedFeature(feature_index=i, measured=0.9 * v, predicted=v) for i, v in alone)
        if len(alone) > 1
        else (),
    )


def fake_steering(job: SteerStream, probed: ProbeResult) -> Iterator[SteerPart]:
    asked = job.asked
    tokens = tuple(replace(token, feature_indexes=(), activations=()) for token in probed.tokens)
    plan = (("baseline", 0.0), *(("steered", dose) for dose in asked.doses), ("control", 1.0))
    yield SteerStart(tokens=tokens, columns=plan)  # type: ignore[arg-type]
    texts = ["" for _ in plan]
    for step in range(asked.n_tokens):
        added = tuple(WORDS[(asked.seed + step * (n + 1)) % len(WORDS)] for n in range(len(plan)))
        texts = [text + more for text, more in zip(texts, added, strict=True)]
        yield SteerStep(added=added)
    yield Steering(request=asked, tokens=tokens, columns=_columns(job, plan, texts), seconds=0.5)  # type: ignore[arg-type]


def _columns(job: SteerStream, plan: tuple[tuple[str, float], ...], texts: list[str]) -> tuple[Column, ...]:
    pushed = [push for push in job.asked.pushes if push.value]
    length = sum(abs(push.value) for push in pushed)
    return tuple(
        Column(
            kind=kind,  # type: ignore[arg-type]
            dose=dose,
            text=text,
            token_ids=tuple(range(n, n + job.asked.n_tokens)),
            finish="length",
            push_norm=dose * length if n else None,
            push_ratio=dose * length / 10 if n else None,
            measured=tuple(Measured(feature_index=p.feature_index, before=0.5, after=p.value) for p in pushed if n),
            kl=0.25 if n else None,
            surprise=1.5 + n,
            repeats=0.125,
        )
        for n, ((kind, dose), text) in enumerate(zip(plan, texts, strict=True))
    )


def _next(word: str, probability: float) -> NextToken:
    return NextToken(token=word, name=word, token_id=9, probability=probability)
