"""Does an imported SAE compute here what it computed there? A few of the model's activations tell.

FVU and L0 are measured as an index measures them. Where they look wrong (FVU above 1, or L0 far from what the files
declare) the same is measured with one convention changed at a time, and what would mend it is named: the user should
not have to guess, and no wrong dashboard should be the first to tell.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_core.config import HOOKS, IndexConfig
from sae_core.corpus import iter_documents
from sae_core.errors import ConfigError
from sae_core.evaluate import Subject, context_size, load_subject
from sae_core.formats.hook_points import split
from sae_core.metrics import RunningReconstruction
from sae_core.records import SAEInfo
from sae_core.sae import SAE
from sae_core.tokens import TokenContext, check_corpus, framing, iter_contexts

N_CONTEXTS = 16
_MOST_FVU = 1.0
_L0_FACTOR = 3.0  # a published L0 is a mean over other text
_MENDS = 0.7  # of the FVU as imported: what another convention must reach to be named
_SHOWN, _PLACES_SHOWN = 3, 2  # of which so many are hook points, or they would leave no room for other conventions
_HOOK_POINT = "hook point"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was measured on `n_tokens` tokens. `suspects` is empty where all looks right."""

    fvu: float
    l0: float
    n_tokens: int
    looks_right: bool
    suspects: tuple[str, ...] = ()  # what to look at, the likeliest first


def self_check(
    info: SAEInfo, *, corpus: tuple[str, ...], declared_l0: float | None, device: str | None, text_field: str = "text"
) -> Check:
    """Measures an imported SAE. Raises ModelError if the model's weights are not here, and what reading text raises."""
    config = IndexConfig(slug=info.slug, corpus=corpus, device=device, text_field=text_field)
    subject = load_subject(info, config)
    contexts = _contexts(subject, config, prepend_bos=None)
    read, target = _acts(subject, contexts, subject.hook_name, subject.target_hook_name)
    fvu, l0 = _measured(subject.sae, read, target)
    sparse_enough = declared_l0 is None or declared_l0 / _L0_FACTOR <= l0 <= declared_l0 * _L0_FACTOR
    looks_right = fvu <= _MOST_FVU and sparse_enough
    suspects: tuple[str, ...] = ()
    if not looks_right:
        found = []
        for said, sae, acts in _otherwise(subject, config, contexts, read, target):
            other_fvu, other_l0 = _measured(sae, *acts)
            if other_fvu < _MENDS * fvu and other_fvu < _MOST_FVU:
                found.append((other_fvu, f"{said}: FVU {other_fvu:.3f} and L0 {other_l0:.1f} with that"))
        sentences = [sentence for _, sentence in sorted(found)]
        places = [sentence for sentence in sentences if sentence.startswith(_HOOK_POINT)]
        suspects = tuple(s for s in sentences if s not in places[_PLACES_SHOWN:])[:_SHOWN]
    return Check(fvu=fvu, l0=l0, n_tokens=len(read), looks_right=looks_right, suspects=suspects)


def _contexts(subject: Subject, config: IndexConfig, *, prepend_bos: bool | None) -> list[TokenContext]:
    frame = subject.frame if prepend_bos is None else framing(subject.model.tokenizer, prepend_bos=prepend_bos)
    size = context_size(subject.info, config)
    documents = iter_documents(config.corpus, text_field=config.text_field)
    contexts = []
    for context in iter_contexts(documents, subject.model.tokenizer, context_size=size, frame=frame):
        contexts.append(context)
        if len(contexts) == N_CONTEXTS:
            break
    check_corpus(contexts, context_size=size, frame=frame)
    return contexts


@torch.inference_mode()
def _acts(
    subject: Subject, contexts: list[TokenContext], hook_name: str, target_hook_name: str
) -> tuple[Tensor, Tensor]:
    ids, attention, counted = subject.tensors(contexts)
    with subject.model.reading((hook_name, target_hook_name)) as read:
        found, target = (acts[counted].float() for acts in read(ids, attention))
    return found, target


@torch.inference_mode()
def _measured(sae: SAE, read: Tensor, target: Tensor) -> tuple[float, float]:
    reconstruction = RunningReconstruction()
    code = sae.encode(read)
    reconstruction.add(target, sae.decode(code))
    fvu = reconstruction.fvu
    return fvu if fvu == fvu else float("inf"), int((code.values > 0).sum()) / len(read)


def _otherwise(
    subject: Subject, config: IndexConfig, contexts: list[TokenContext], read: Tensor, target: Tensor
) -> Iterator[tuple[str, SAE, tuple[Tensor, Tensor]]]:
    """One convention changed at a time: what it is, the SAE, and what it reads and should give."""
    sae, acts = subject.sae, (read, target)
    if not sae.is_transcoder:
        other = copy.copy(sae)
        other.subtracts_b_dec = not sae.subtracts_b_dec
        now = "is" if sae.subtracts_b_dec else "is not"
        yield f"bias subtraction (b_dec {now} subtracted from the input)", other, acts
    scale = sae.d_in**0.5 / float(read.norm(dim=1).mean())
    if sae.input_norm == "none":
        other = copy.deepcopy(sae)
        other.fold_scale_keeping_activations(scale)
        yield f"normalisation (import it with --input-scale {scale:.4g})", other, acts
        if not sae.is_transcoder:
            other = copy.copy(sae)
            other.input_norm = "layer_norm"
            yield "normalisation (as if its input had to be layer-normalised)", other, acts
    else:
        other = copy.copy(sae)
        other.input_norm = "none"
        yield f"normalisation (as if its input did not need {sae.input_norm})", other, acts
    if subject.hook_name == subject.target_hook_name:
        yield from ((said, sae, at) for said, at in _elsewhere(subject, contexts))
    if subject.frame.prefix or subject.model.tokenizer.bos_token_id is not None:
        turned = not subject.frame.prefix
        frame = framing(subject.model.tokenizer, prepend_bos=turned)
        other_subject = Subject(subject.info, subject.model, sae, frame, subject.dtype)
        framed = _contexts(subject, config, prepend_bos=turned)
        said = f"BOS (import it with {'--bos' if turned else '--no-bos'})"
        yield said, sae, _acts(other_subject, framed, subject.hook_name, subject.target_hook_name)


def _elsewhere(subject: Subject, contexts: list[TokenContext]) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    layer, hook = split(subject.hook_name)
    places = [(layer, other) for other in HOOKS if other != hook]
    places += [(near, hook) for near in (layer - 1, layer + 1) if 0 <= near < subject.model.info.n_layers]
    for at, kind in places:
        name = f"blocks.{at}.hook_{kind}"
        if _width(subject, name) != subject.sae.d_in:
            continue
        yield f"{_HOOK_POINT} (--layer {at} --hook {kind})", _acts(subject, contexts, name, name)


def _width(subject: Subject, hook_name: str) -> int | None:
    try:
        return subject.model.width(hook_name)
    except ConfigError:
        return None  # this architecture has no such hook point
