"""Steering against the slow, obvious way: the whole text run anew for every token, with a plain hook on the block."""

import dataclasses
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_core.causal.edits import ColumnEdit, Edits
from sae_core.causal.records import Column, Push, Steering, SteerRequest, SteerStart, SteerStep
from sae_core.causal.sampling import sample
from sae_core.causal.steering import steer
from sae_core.config import HOOKS
from sae_core.errors import ModelError, NotFoundError, PromptError, PromptTooLongError
from sae_core.loading import load_model
from sae_core.model import LanguageModel
from sae_core.probe import Prober
from sae_core.sae import ARCHITECTURES, load_sae
from tests.planted import dense_encode, random_sae, save_sae
from tests.tiny import CAUSAL_KINDS, save_tiny_model

# A cache of keys and values is the model's, a change the hook point's: each kind at one point, each point in one kind.
KIND_OR_HOOK = [(kind, "resid_post") for kind in CAUSAL_KINDS] + [
    ("llama", hook) for hook in HOOKS if hook != "resid_post"
]
LAYER = 1
PROMPT = "The whale sang all night"
N_TOKENS = 12
ADD = (Push(feature_index=3, mode="add", value=9.0),)
CLAMP = (Push(feature_index=3, mode="clamp", value=9.0), Push(feature_index=8, mode="clamp", value=0.0))
GREEDY = SteerRequest(prompt=PROMPT, pushes=ADD, temperature=0, n_tokens=N_TOKENS)


def prober_of(
    model: LanguageModel, folder: Path, *, hook: str = "resid_post", architecture: str = "topk",
    target_hook: str | None = None,
) -> Prober:  # fmt: skip
    d_in, d_out = (model.width(f"blocks.{LAYER}.hook_{point}") for point in (hook, target_hook or hook))
    sae = random_sae(d_in, 48, 6, seed=5, architecture=architecture, d_out=d_out if target_hook else None)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_enc / 4 + 0.6 * sae.W_dec.T)  # reads its own directions in part, as trained ones do
    info = save_sae(sae, folder / "sae", model, layer=LAYER, hook=hook, context_size=32)
    if target_hook:
        info = dataclasses.replace(info, config={**info.config, "target_hook": target_hook})
    return Prober(info, model=model)


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Prober:
    return prober_of(load_model(str(tiny_llama)), tmp_path_factory.mktemp("tiny"))


def steered(prober: Prober, asked: SteerRequest, **options: object) -> Steering:
    *_, last = steer(prober, asked, **options)  # type: ignore[arg-type]
    assert isinstance(last, Steering)
    return last


def column(found: Steering, kind: str, dose: float = 1.0) -> Column:
    return next(c for c in found.columns if c.kind == kind and (kind == "baseline" or c.dose == dose))


def prompt_ids(prober: Prober) -> list[int]:
    return [*prober.frame.prefix, *prober.token_ids(PROMPT, max_tokens=99)]


@torch.no_grad()
def slowly(prober: Prober, edit: Callable[[Tensor], Tensor], *, first: int) -> tuple[int, ...]:
    """The likeliest tokens, `edit` changing the block's vectors from token `first` on, with the whole text run anew."""
    ids = prompt_ids(prober)
    n_prompt = len(ids)

    def change(_: object, __: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[0, first:] = edit(output[0, first:])
        return output

    for _ in range(N_TOKENS):
        with prober.model.blocks[LAYER].register_forward_hook(change):
            logits = prober.model.module(torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return tuple(ids[n_prompt:])


# What is written


@pytest.mark.parametrize("where", ["everywhere", "after"])
def test_added_directions_give_the_text_that_a_plain_hook_gives(where: str, tiny: Prober) -> None:
    asked = dataclasses.replace(GREEDY, where=where)  # type: ignore[arg-type]
    first = 1 if where == "everywhere" else len(prompt_ids(tiny)) - 1
    found = steered(tiny, asked)
    plain = slowly(tiny, lambda h: h, first=first)
    pushed = slowly(tiny, lambda h: h + 9.0 * tiny.sae.W_dec[3], first=first)
    assert column(found, "baseline").token_ids == plain
    assert column(found, "steered").token_ids == pushed
    assert pushed != plain
    only_prompt = slowly(tiny, lambda h: torch.cat([h[:5] + 9.0 * tiny.sae.W_dec[3], h[5:]]), first=first)
    assert where == "after" or pushed != only_prompt  # what is written must be steered too


@pytest.mark.parametrize("where", ["everywhere", "after"])
def test_clamps_give_the_text_that_a_plain_hook_gives(where: str, tiny: Prober) -> None:
    asked = dataclasses.replace(GREEDY, pushes=CLAMP, where=where)  # type: ignore[arg-type]
    first = 1 if where == "everywhere" else len(prompt_ids(tiny)) - 1

    def clamp(h: Tensor) -> Tensor:
        """One token at a time, by trying: the smaller gap wins until there is none."""
        acts, moved = dense_encode(tiny.sae, h), []
        for x, own in zip(h, acts, strict=True):
            features = [3, 8] if own[8] > 0 else [3]
            goal = torch.tensor([9.0, 0.0][: len(features)])
            y = x.clone()
            for _ in range(200):
                pre = (y - tiny.sae.b_dec) @ tiny.sae.W_enc[:, features] + tiny.sae.b_enc[features]
                y = y + 0.8 * (goal - pre) @ tiny.sae.W_dec[features]
            if len(features) == 1:  # the other's reading stays what it is
                both = torch.tensor([3, 8])
                pre = (x - tiny.sae.b_dec) @ tiny.sae.W_enc[:, both] + tiny.sae.b_enc[both]
                goal = torch.stack([torch.tensor(9.0), pre[1]])
                y = (
                    x
                    + torch.linalg.solve((tiny.sae.W_dec[both] @ tiny.sae.W_enc[:, both]).T, goal - pre)
                    @ tiny.sae.W_dec[both]
                )
            moved.append(y)
        return torch.stack(moved)

    found = steered(tiny, asked)
    assert column(found, "steered").token_ids == slowly(tiny, clamp, first=first)
    assert column(found, "steered").token_ids != column(found, "baseline").token_ids


@pytest.mark.parametrize(("kind", "hook"), KIND_OR_HOOK)
def test_with_keys_and_values_kept_it_writes_what_it_writes_without(
    kind: str, hook: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(f"{kind}-{hook}")
    prober = prober_of(load_model(str(save_tiny_model(folder / "model", kind))), folder, hook=hook)
    for pushes in (ADD, CLAMP):
        for where in ("everywhere", "after"):
            far = tuple(dataclasses.replace(push, value=4 * push.value) for push in pushes)
            asked = SteerRequest(prompt=PROMPT, pushes=far, where=where, temperature=5.0, top_p=1.0, n_tokens=20)
            kept, anew = steered(prober, asked), steered(prober, asked, keeps=False)
            assert [c.token_ids for c in kept.columns] == [c.token_ids for c in anew.columns]
            texts = {kind: column(kept, kind).token_ids for kind in ("baseline", "steered", "control")}
            assert len(set(texts.values())) == 3, (pushes[0].mode, where)


def test_no_strength_gives_just_the_baselines_tokens(tiny: Prober) -> None:
    asked = SteerRequest(
        prompt=PROMPT, pushes=(Push(feature_index=3, mode="add", value=0.0),), temperature=1.0, n_tokens=30
    )
    found = steered(tiny, asked)
    assert len({c.token_ids for c in found.columns}) == 1
    doses = steered(tiny, dataclasses.replace(asked, pushes=ADD, doses=(0.0, 1.0)))
    assert column(doses, "steered", 0.0).token_ids == column(doses, "baseline").token_ids == found.columns[0].token_ids
    assert column(doses, "steered", 1.0).token_ids != column(doses, "baseline").token_ids
    # Also where the change is made and is nothing: a push so small that no number sees it.
    tiny_push = dataclasses.replace(asked, pushes=(Push(feature_index=3, mode="add", value=1e-30),))
    assert len({c.token_ids for c in steered(tiny, tiny_push).columns}) == 1


def test_the_dose_strip_is_what_each_dose_gives_alone(tiny: Prober) -> None:
    doses = (0.25, 0.5, 1.0, 2.0)
    strip = steered(tiny, dataclasses.replace(GREEDY, doses=doses))
    assert [(c.kind, c.dose) for c in strip.columns] == [
        ("baseline", 0.0), *(("steered", dose) for dose in doses), ("control", 1.0),
    ]  # fmt: skip
    for dose in doses:
        push = Push(feature_index=3, mode="add", value=9.0 * dose)
        alone = steered(tiny, dataclasses.replace(GREEDY, pushes=(push,)))
        assert column(alone, "steered").token_ids == column(strip, "steered", dose).token_ids
        assert column(strip, "steered", dose).push_norm == pytest.approx(9.0 * dose, rel=1e-4)


def test_the_same_seed_gives_the_same_texts_and_another_one_others(tiny: Prober) -> None:
    asked = SteerRequest(prompt=PROMPT, pushes=ADD, temperature=1.0, n_tokens=20)
    first, again = steered(tiny, asked), steered(tiny, asked)
    other = steered(tiny, dataclasses.replace(asked, seed=1))
    assert [c.token_ids for c in first.columns] == [c.token_ids for c in again.columns]
    assert [c.token_ids for c in first.columns] != [c.token_ids for c in other.columns]


def test_special_tokens_are_never_changed(tiny: Prober) -> None:
    bos = tiny.model.tokenizer.bos_token_id
    seen: list[Tensor] = []
    block = tiny.model.blocks[LAYER]
    asked = dataclasses.replace(GREEDY, prompt=f"one {tiny.model.tokenizer.bos_token} two", n_tokens=1)
    parts = steer(tiny, asked)
    start = next(parts)
    assert isinstance(start, SteerStart)
    specials = [t.is_special for t in start.tokens]
    assert [t.token_id for t in start.tokens].count(bos) == sum(specials) == 2
    with tiny.model.blocks[LAYER + 1].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())):
        next(parts)
    with torch.no_grad(), block.register_forward_hook(lambda _, __, out: seen.append(out.clone())):
        tiny.model.module(torch.tensor([[t.token_id for t in start.tokens]]))
    edited, plain = seen[0], seen[1][0]
    torch.testing.assert_close(edited[0], plain)
    moved = edited[1] - plain
    for position, is_special in enumerate(specials):
        expected = torch.zeros(len(plain[0])) if is_special else 9.0 * tiny.sae.W_dec[3]
        torch.testing.assert_close(moved[position], expected, atol=1e-4, rtol=0)


# What is measured


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_clamp_moves_the_activation_to_its_value(architecture: str, tiny_llama: Path, tmp_path: Path) -> None:
    prober = prober_of(load_model(str(tiny_llama)), tmp_path, architecture=architecture)
    pushes = (
        Push(feature_index=3, mode="clamp", value=14.0),
        Push(feature_index=5, mode="clamp", value=0.0),
        Push(feature_index=7, mode="clamp", value=11.0),
        Push(feature_index=9, mode="add", value=2.0),
    )
    found = steered(prober, dataclasses.replace(GREEDY, pushes=pushes, doses=(0.5, 1.0)))
    after = {one.feature_index: one.after for one in column(found, "steered").measured}
    assert after[3] == pytest.approx(14.0, abs=1e-3)
    assert after[5] == pytest.approx(0.0, abs=1e-3)
    assert after[7] == pytest.approx(11.0, abs=1e-3)
    before = {one.feature_index: one.before for one in column(found, "steered").measured}
    assert before[3] < 13
    control = {one.feature_index: one.after for one in column(found, "control").measured}
    assert control[3] is not None and control[3] < 13


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_an_sae_that_normalises_its_input_is_clamped_too_and_adds_at_the_tokens_own_scale(
    norm: str, tiny: Prober
) -> None:
    sae = load_sae(Path(tiny.info.weights_path))
    sae.input_norm = norm
    h = 3 * torch.randn(1, 6, sae.d_in, generator=torch.Generator().manual_seed(2))
    pushes = (Push(feature_index=3, mode="clamp", value=3.0),)
    edited = Edits(sae, [ColumnEdit(pushes=pushes)], seed=0)(h, h)
    assert edited is not None
    rows, features, values = sae.encode(edited[0]).active()
    assert values[features == 3].tolist() == pytest.approx([3.0] * 6, abs=0.02)
    added = Edits(sae, [ColumnEdit(pushes=(Push(feature_index=3, mode="add", value=2.0),))], seed=0)(h, h)
    code = sae.encode(h[0])
    assert added is not None and code.row_scale is not None
    torch.testing.assert_close(added[0] - h[0], 2.0 * code.row_scale * sae.W_dec[3], atol=1e-4, rtol=1e-4)
    assert len(set(rows.tolist())) == 6


def test_a_dose_of_a_clamp_goes_so_far_towards_its_value(tiny: Prober) -> None:
    edits = Edits(tiny.sae, [ColumnEdit(pushes=CLAMP[:1], dose=dose) for dose in (0.5, 1.0)], seed=0)
    h = 3 * torch.randn(2, 5, tiny.sae.d_in, generator=torch.Generator().manual_seed(1))
    h[1] = h[0]
    edited = edits(h, h)
    assert edited is not None
    torch.testing.assert_close(2 * (edited[0] - h[0]), edited[1] - h[1], atol=1e-4, rtol=1e-4)
    assert dense_encode(tiny.sae, edited[1])[:, 3].tolist() == pytest.approx([9.0] * 5, abs=1e-3)
    direction = (edited[1] - h[1]) @ tiny.sae.W_dec[3]
    torch.testing.assert_close(edited[1] - h[1], direction[:, None] * tiny.sae.W_dec[3], atol=1e-4, rtol=1e-4)


def test_a_transcoders_clamp_sets_what_the_feature_writes(tiny_llama: Path, tmp_path: Path) -> None:
    prober = prober_of(load_model(str(tiny_llama)), tmp_path, hook="mlp_in", target_hook="mlp_out")
    edits = Edits(prober.sae, [ColumnEdit(pushes=CLAMP[:1])], seed=0)
    generator = torch.Generator().manual_seed(1)
    read, write = (3 * torch.randn(1, 5, prober.sae.d_in, generator=generator) for _ in range(2))
    edited = edits(read, write)
    assert edited is not None
    acts = dense_encode(prober.sae, read[0])[:, 3]
    torch.testing.assert_close(edited[0] - write[0], (9.0 - acts)[:, None] * prober.sae.W_dec[3], atol=1e-4, rtol=1e-4)
    found = steered(prober, dataclasses.replace(GREEDY, pushes=CLAMP[:1]))
    assert [one.after for one in column(found, "steered").measured] == [None]
    assert column(found, "steered").token_ids == steered(prober, found.request, keeps=False).columns[1].token_ids


def test_the_control_is_pushed_as_far_but_elsewhere(tiny: Prober) -> None:
    columns = [ColumnEdit(pushes=CLAMP, is_control=is_control) for is_control in (False, True)]
    edits = Edits(tiny.sae, columns, seed=4)
    h = 3 * torch.randn(1, 6, tiny.sae.d_in, generator=torch.Generator().manual_seed(2)).expand(2, -1, -1)
    edited = edits(h, h)
    assert edited is not None
    own, control = edited - h
    torch.testing.assert_close(own.norm(dim=1), control.norm(dim=1))
    unit = torch.nn.functional.normalize(control, dim=1)
    torch.testing.assert_close(unit, unit[:1].expand(6, -1), atol=1e-4, rtol=1e-4)
    assert abs(float(unit[0] @ tiny.sae.W_dec[3])) < 0.7
    tallies = edits.tallies
    assert tallies[0].push_norm == pytest.approx(tallies[1].push_norm, rel=1e-4)
    assert tallies[0].push_norm == pytest.approx(float(own.norm(dim=1).mean()), rel=1e-4)
    ratios = own.norm(dim=1) / h[0].norm(dim=1)
    assert tallies[0].push_ratio == pytest.approx(float(ratios.mean()), rel=1e-4)


def test_surprise_repeats_and_divergence_are_those_of_plain_sums(tiny: Prober) -> None:
    found = steered(tiny, dataclasses.replace(GREEDY, temperature=1.0))
    start = len(prompt_ids(tiny))
    first_logits = []
    for kind in ("baseline", "steered", "control"):
        one = column(found, kind)
        ids = torch.tensor([[*prompt_ids(tiny), *one.token_ids]])
        with torch.no_grad():
            log_probs = tiny.model.module(ids).logits[0].log_softmax(dim=1)
        losses = [-float(log_probs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])]
        assert one.surprise == pytest.approx(sum(losses) / N_TOKENS, abs=1e-4)
        pairs = list(pairwise(one.token_ids))
        assert one.repeats == pytest.approx(1 - len(set(pairs)) / (N_TOKENS - 1))
    with torch.no_grad():
        ids = torch.tensor([prompt_ids(tiny)])
        first_logits.append(tiny.model.module(ids).logits[0, -1].log_softmax(0))

        def push(_: object, __: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[0, 1:] += 9.0 * tiny.sae.W_dec[3]
            return output

        with tiny.model.blocks[LAYER].register_forward_hook(push):
            first_logits.append(tiny.model.module(ids).logits[0, -1].log_softmax(0))
    p, q = first_logits
    assert column(found, "steered").kl == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-4)
    assert column(found, "baseline").kl is None


# How it comes


def test_the_parts_add_up_to_the_whole_and_other_work_between_them_does_not_matter(tiny: Prober) -> None:
    asked = SteerRequest(prompt="中文 😀", pushes=ADD, temperature=1.2, top_p=1.0, n_tokens=40)
    alone = steered(tiny, asked)
    start, *parts = (part for part in _disturbed(tiny, asked))
    assert isinstance(start, SteerStart)
    assert start.columns == (("baseline", 0.0), ("steered", 1.0), ("control", 1.0))
    assert "".join(t.token for t in start.tokens if not t.is_special) == "中文 😀"
    *steps, last = parts
    assert isinstance(last, Steering)
    assert [c.token_ids for c in last.columns] == [c.token_ids for c in alone.columns]
    for at, one in enumerate(last.columns):
        streamed = "".join(step.added[at] for step in steps if isinstance(step, SteerStep))
        assert one.text.rstrip("\ufffd") == streamed.rstrip("\ufffd")
        data = b"".join(tiny.vocabulary.tokens[i] for i in one.token_ids if i != tiny.model.tokenizer.eos_token_id)
        assert one.text == data.decode("utf-8", "replace")


def _disturbed(prober: Prober, asked: SteerRequest) -> list[object]:
    found: list[object] = []
    for part in steer(prober, asked):
        found.append(part)
        hooks = [m._forward_hooks or m._forward_pre_hooks for m in prober.model.module.modules()]
        assert not any(hooks)
        prober.probe("some other text")
    return found


def test_it_ends_with_the_models_own_end(tiny: Prober) -> None:
    end = tiny.model.tokenizer.eos_token_id
    head = tiny.model.module.get_output_embeddings()

    def sometimes(_: object, __: object, logits: Tensor) -> Tensor:
        """The second row ends at once, the others never."""
        logits = logits.clone()
        logits[..., end] = -100.0
        if len(logits) == 3:
            logits[1, -1, end] = 100.0
        return logits

    with head.register_forward_hook(sometimes):
        found = steered(tiny, GREEDY)
    assert [(c.finish, len(c.token_ids)) for c in found.columns] == [
        ("length", N_TOKENS), ("end", 1), ("length", N_TOKENS),
    ]  # fmt: skip
    assert found.columns[1].text == ""


def test_it_stops_when_its_time_is_over(tiny: Prober) -> None:
    parts = list(steer(tiny, GREEDY, max_seconds=0.0))
    last = parts[-1]
    assert isinstance(last, Steering)
    assert {c.finish for c in last.columns} == {"time"}
    assert all(len(c.token_ids) < N_TOKENS for c in last.columns)


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if 'forbidden' in m.content %}{{ raise_exception('not that') }}"
    "{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[model]{% endif %}"
)


@pytest.fixture
def chatting(tiny_llama: Path, tmp_path: Path) -> Prober:
    """A model of its own that was loaded from a folder whose tokenizer has a chat template."""
    folder = tmp_path / "chatting"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return prober_of(load_model(str(folder)), tmp_path)


def test_a_chat_prompt_is_put_into_the_models_template(tiny: Prober, chatting: Prober) -> None:
    asked = dataclasses.replace(GREEDY, chat=True)
    with pytest.raises(PromptError, match="no chat template"):
        steered(tiny, asked)
    found = steered(chatting, asked)
    assert found.tokens[0].is_special and not found.tokens[1].is_special
    assert "".join(t.token for t in found.tokens[1:]) == f"[user] {PROMPT}\n[model]"


def test_a_chat_goes_on_from_what_was_said(chatting: Prober) -> None:
    first = steered(chatting, dataclasses.replace(GREEDY, chat=True))
    answer = first.columns[1].text
    asked = dataclasses.replace(GREEDY, chat=True, turns=(PROMPT, answer), prompt="And then?")
    second = steered(chatting, asked)
    assert "".join(t.token for t in second.tokens[1:]) == (
        f"[user] {PROMPT}\n[assistant] {answer}\n[user] And then?\n[model]"
    )
    # The baseline is what the plain model writes behind these very tokens, steered or not its answers were.
    ids = [t.token_id for t in second.tokens]
    with torch.inference_mode():
        for written in second.columns[0].token_ids:
            assert int(chatting.model.module(torch.tensor([ids])).logits[0, -1].argmax()) == written
            ids.append(written)
    assert second.columns[0].token_ids != second.columns[1].token_ids


def test_a_chat_that_cannot_be_is_refused_in_a_sentence(chatting: Prober) -> None:
    for change, sentence in (
        ({"turns": ("a", "b"), "chat": False}, "those of a chat"),
        ({"turns": ("a",)}, "followed by the model's answer"),
        ({"turns": ("a", "", " ", "b")}, "turn 2 of the chat is empty"),
        ({"turns": ("forbidden", "b")}, "refuses this conversation .not that"),
        ({"turns": ("a " * 200, "b")}, "over the limit of 99; take out"),
    ):
        with pytest.raises(PromptError, match=sentence):
            steered(chatting, dataclasses.replace(GREEDY, **({"chat": True} | change)), max_tokens=99)


# Sampling


def test_a_token_is_drawn_as_often_as_it_is_likely() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    draws = [(i + 0.5) / 4000 for i in range(4000)]
    for temperature in (0.5, 1.0, 2.0):
        found = [int(sample(logits, temperature=temperature, top_p=1.0, draw=draw)) for draw in draws]
        shares = torch.bincount(torch.tensor(found), minlength=4) / 4000
        torch.testing.assert_close(shares, (logits[0] / temperature).softmax(0), atol=1e-3, rtol=0)


def test_top_p_keeps_the_likeliest_that_make_it_up() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()
    draws = [i / 100 for i in range(100)]
    for top_p, kept in (
        (0.4, {1}),
        (0.5, {1}),
        (0.51, {1, 2}),
        (0.8, {1, 2}),
        (0.95, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ):
        assert {int(sample(logits, temperature=1.0, top_p=top_p, draw=draw)) for draw in draws} == kept, top_p
    assert int(sample(logits, temperature=0, top_p=0.1, draw=0.99)) == 1


def test_rows_that_are_alike_draw_alike() -> None:
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(3)).expand(4, -1)
    for draw in (0.0, 0.3, 0.999999):
        assert len(set(sample(logits, temperature=1.0, top_p=0.9, draw=draw).tolist())) == 1


# Refusals


def test_what_cannot_be_steered_is_refused(tiny: Prober, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no feature 48"):
        steered(tiny, dataclasses.replace(GREEDY, pushes=(Push(feature_index=48, mode="add", value=1.0),)))
    with pytest.raises(PromptTooLongError, match="has places for 512"):
        steered(tiny, dataclasses.replace(GREEDY, n_tokens=510))
    with pytest.raises(PromptError, match="empty"):
        steered(tiny, dataclasses.replace(GREEDY, prompt=" "))
    with pytest.raises(PromptError, match="twice"):
        dataclasses.replace(GREEDY, pushes=ADD * 2)
    with pytest.raises(PromptError, match="overflow"):
        steered(tiny, dataclasses.replace(GREEDY, pushes=(Push(feature_index=3, mode="add", value=1e38),)))
    bert = prober_of(load_model(str(save_tiny_model(tmp_path / "model", "bert"))), tmp_path)
    with pytest.raises(ModelError, match="predicts no next token"):
        steered(bert, GREEDY)


def test_a_clamp_that_the_encoder_would_not_notice_is_refused(tiny: Prober) -> None:
    sae = load_sae(Path(tiny.info.weights_path))
    with torch.no_grad():
        sae.W_enc[:, 3] -= (sae.W_enc[:, 3] @ sae.W_dec[3]) * sae.W_dec[3]
    with pytest.raises(PromptError, match="cannot be clamped"):
        Edits(sae, [ColumnEdit(pushes=CLAMP[:1])], seed=0)
    Edits(sae, [ColumnEdit(pushes=ADD)], seed=0)
