"""Attribution and ablation: exact where the model is linear, equal to slow sums elsewhere, and the rows add up."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_core.causal.ablation import ablate
from sae_core.causal.attribution import attribute, question
from sae_core.causal.records import Attribution
from sae_core.errors import ModelError, NotFoundError, PromptError
from sae_core.loading import load_model
from sae_core.model import LanguageModel
from sae_core.probe import Prober
from sae_core.sae import ARCHITECTURES
from tests.linear import linear_model
from tests.planted import dense_encode, random_sae, save_sae
from tests.tiny import CAUSAL_KINDS_WITH_HOOKS, TEXTS, save_tiny_model

LAYER = 1
TEXT = TEXTS[0]


def prober_of(
    model: LanguageModel, folder: Path, *, hook: str = "resid_post", layer: int = LAYER, architecture: str = "topk",
    target_hook: str | None = None,
) -> Prober:  # fmt: skip
    d_in, d_out = (model.width(f"blocks.{layer}.hook_{point}") for point in (hook, target_hook or hook))
    sae = random_sae(d_in, 48, 6, seed=5, architecture=architecture, d_out=d_out if target_hook else None)
    info = save_sae(sae, folder / "sae", model, layer=layer, hook=hook, context_size=32)
    if target_hook:
        info = dataclasses.replace(info, config={**info.config, "target_hook": target_hook})
    return Prober(info, model=model)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Prober:
    return prober_of(linear_model(), tmp_path_factory.mktemp("linear"), layer=0)


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Prober:
    return prober_of(load_model(str(tiny_llama)), tmp_path_factory.mktemp("tiny"))


def sums(found: Attribution) -> tuple[float, float]:
    rows = [*found.features, *found.others]
    return sum(row.total for row in rows), sum(row.direct or 0.0 for row in rows)


@torch.no_grad()
def logits_of(prober: Prober, x: Tensor, layer: int) -> Tensor:
    """The linear model's logits (T, vocab) of the vectors x (T, d) behind a block."""
    module = prober.model.module
    for block in list(module.model.layers)[layer + 1 :]:
        x = block(x.unsqueeze(0))[0]
    return module.head(x)


def test_on_a_linear_model_every_row_is_what_taking_it_out_changes(linear: Prober) -> None:
    found = attribute(linear, TEXT, token=6, target="#40", against="#41")
    ids = torch.tensor([[t.token_id for t in found.tokens]])
    with torch.no_grad():
        x = linear.model.module.model.layers[0](linear.model.module.embeddings(ids))[0]

    def explained(vectors: Tensor) -> float:
        row = logits_of(linear, vectors, 0)[6].double()
        return float(row[40] - row[41])

    assert found.explained == pytest.approx(explained(x), abs=1e-5)
    acts = dense_encode(linear.sae, x)
    acts[0] = 0  # BOS
    for row in found.features:
        without = x - acts[:, row.feature_index, None] * linear.sae.W_dec[row.feature_index]
        assert row.total == pytest.approx(explained(x) - explained(without), abs=1e-4)
        head = linear.model.module.head.weight
        straight = acts[6, row.feature_index] * (head[40] - head[41]) @ linear.sae.W_dec[row.feature_index]
        assert row.direct == pytest.approx(float(straight), abs=1e-4)
    others = {row.name: row for row in found.others}
    counted = (torch.arange(len(x)) > 0)[:, None]
    sae_out = acts @ linear.sae.W_dec + linear.sae.b_dec
    for name, vectors in {
        "error": (x - sae_out) * counted,
        "bias": linear.sae.b_dec * counted,
        "special": x * ~counted,
    }.items():
        assert others[name].total == pytest.approx(explained(x) - explained(x - vectors), abs=1e-4), name
    constant = explained(torch.zeros_like(x))  # what the later block's own biases add
    assert others["rest"].total == pytest.approx(constant, abs=1e-4)
    assert sums(found) == pytest.approx((found.explained, found.explained), abs=1e-9)


def test_on_a_linear_model_ablation_changes_just_what_was_predicted(linear: Prober) -> None:
    top = [row.feature_index for row in attribute(linear, TEXT, target="#40").features[:5]]
    found = ablate(linear, TEXT, features=top, target="#40")
    assert abs(found.measured) > 0.01
    assert found.measured == pytest.approx(found.predicted, abs=1e-4)
    assert [one.measured for one in found.alone] == pytest.approx([one.predicted for one in found.alone], abs=1e-4)
    assert sum(one.measured for one in found.alone) == pytest.approx(found.measured, abs=1e-4)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_totals_are_slopes_of_the_models_own_answer(
    architecture: str, tiny_llama: Path, tmp_path: Path
) -> None:  # fmt: skip
    prober = prober_of(load_model(str(tiny_llama)), tmp_path, architecture=architecture)
    found = attribute(prober, TEXT, token=8, max_features=500)
    ids = torch.tensor([[t.token_id for t in found.tokens[:9]]])
    x = prober.model.activations(ids, torch.ones_like(ids, dtype=torch.bool), prober.info.hook_name)[0]
    acts = dense_encode(prober.sae, x)
    acts[0] = 0
    assert {row.feature_index for row in found.features} == set(acts.sum(dim=0).nonzero().flatten().tolist())
    block = prober.model.blocks[LAYER]
    for row in found.features[:4]:
        step = 1e-2 * acts[:, row.feature_index, None] * prober.sae.W_dec[row.feature_index]
        logits = []
        for sign in (1, -1):
            with torch.no_grad(), block.register_forward_hook(lambda _, __, out, push=sign * step: out + push):
                logits.append(float(prober.model.module(ids).logits[0, 8, found.target.token_id]))
        assert row.total == pytest.approx((logits[0] - logits[1]) / 2e-2, rel=2e-2, abs=2e-3)


@pytest.mark.parametrize(("kind", "hook"), CAUSAL_KINDS_WITH_HOOKS)
def test_the_rows_add_up_to_the_models_own_logit_everywhere(
    kind: str, hook: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(f"{kind}-{hook}")
    prober = prober_of(load_model(str(save_tiny_model(folder / "model", kind))), folder, hook=hook)
    found = attribute(prober, TEXT, token=7, max_features=5)
    ids = torch.tensor([[t.token_id for t in found.tokens]])
    with torch.no_grad():
        logits = prober.model.module(ids).logits[0, 7]
    assert found.target.token_id == int(logits.argmax())
    assert found.explained == pytest.approx(float(logits.max()), abs=1e-4)
    assert found.target.probability == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
    total, direct = sums(found)
    assert total == pytest.approx(found.explained, abs=1e-9)
    if hook in ("mlp_in", "z", "mlp_post"):  # what stands there is not added to the residual stream
        assert all(row.direct is None for row in (*found.features, *found.others))
    else:
        assert direct == pytest.approx(found.explained, abs=1e-9)
    assert len(found.features) == 5 and found.n_features > 5
    assert found.others[0].name == "others"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_direct_effects_go_through_the_final_norm_with_its_scale_held(kind: str, tmp_path: Path) -> None:
    """Behind the last block all that is left is the norm and the output layer: the rest is the norm's bias alone."""
    prober = prober_of(load_model(str(save_tiny_model(tmp_path / "model", kind))), tmp_path, layer=2)
    found = attribute(prober, TEXT, token=7, max_features=500)
    module = prober.model.module
    ids = torch.tensor([[t.token_id for t in found.tokens]])
    norm = module.transformer.ln_f if kind == "gpt2" else module.model.norm
    seen: list[Tensor] = []
    with torch.no_grad(), norm.register_forward_hook(lambda _, args, out: seen.extend([args[0][0, 7], out[0, 7]])):
        module(ids)
    x, normed = seen
    bias = norm.bias if kind == "gpt2" else torch.zeros_like(x)
    centred = x - x.mean() if kind == "gpt2" else x
    scale = (normed - bias) / centred  # elementwise: gain over the token's own size
    weights = module.get_output_embeddings().weight[found.target.token_id]
    slope = 1.0
    if kind == "gemma2":  # logits are capped: cap · tanh(raw / cap)
        cap = module.config.final_logit_softcapping
        slope = float(1 - torch.tanh(weights @ normed / cap) ** 2)
    acts = dense_encode(prober.sae, x.unsqueeze(0))[0]
    for row in found.features[:10]:
        added = acts[row.feature_index] * prober.sae.W_dec[row.feature_index]
        added = added - added.mean() if kind == "gpt2" else added
        assert row.direct == pytest.approx(slope * float((added * scale) @ weights), rel=1e-3, abs=1e-4)
    if kind != "gemma2":
        rest = next(row for row in found.others if row.name == "rest")
        assert rest.direct == pytest.approx(float(bias @ weights), abs=1e-3)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_an_sae_that_normalises_its_input_has_rows_that_are_what_it_adds(
    norm: str, tiny_llama: Path, tmp_path: Path
) -> None:
    prober = prober_of(load_model(str(tiny_llama)), tmp_path)
    prober.sae.input_norm = norm
    found = attribute(prober, TEXT, token=6, max_features=500)
    assert sums(found) == pytest.approx((found.explained, found.explained), abs=1e-9)
    ids = torch.tensor([[t.token_id for t in found.tokens[:7]]])
    x = prober.model.activations(ids, torch.ones_like(ids, dtype=torch.bool), prober.info.hook_name)[0]
    code = prober.sae.encode(x)
    effects_of_sae_out = sum(row.direct or 0 for row in found.features)
    effects_of_sae_out += next(row.direct or 0 for row in found.others if row.name == "bias")
    error = next(row.direct or 0 for row in found.others if row.name == "error")
    share = error / (error + effects_of_sae_out)
    sae_out = prober.sae.decode(code)[6]
    question_of = question(prober, TEXT, token=6, target=None, against=None, max_tokens=99)
    readout = question_of.found.readout
    assert readout is not None
    assert effects_of_sae_out == pytest.approx(float(readout @ sae_out), abs=1e-3)
    assert share == pytest.approx(float(readout @ (x[6] - sae_out) / (readout @ x[6])), abs=1e-3)


def test_a_transcoder_is_attributed_where_it_writes(tiny_llama: Path, tmp_path: Path) -> None:
    prober = prober_of(load_model(str(tiny_llama)), tmp_path, hook="mlp_in", target_hook="mlp_out")
    found = attribute(prober, TEXT, token=7)
    assert sums(found) == pytest.approx((found.explained, found.explained), abs=1e-9)
    ablated = ablate(prober, TEXT, token=7, features=[found.features[0].feature_index])
    assert ablated.measured * ablated.predicted > 0


def test_ablation_is_the_models_own_answer_without_the_features(tiny: Prober) -> None:
    top = [row.feature_index for row in attribute(tiny, TEXT, token=8).features[:3]]
    found = ablate(tiny, TEXT, features=top, token=8)
    tokens = tiny.bare_tokens(tiny.token_ids(TEXT, max_tokens=99))[:9]
    ids = torch.tensor([[t.token_id for t in tokens]])
    x = tiny.model.activations(ids, torch.ones_like(ids, dtype=torch.bool), tiny.info.hook_name)[0]
    acts = dense_encode(tiny.sae, x)
    acts[0] = 0
    taken = acts[:, top] @ tiny.sae.W_dec[top]
    with torch.no_grad():
        before = tiny.model.module(ids).logits[0, 8]
        with tiny.model.blocks[LAYER].register_forward_hook(lambda _, __, out: out - taken):
            after = tiny.model.module(ids).logits[0, 8]
    target = int(before.argmax())
    assert found.before == pytest.approx(float(before[target]), abs=1e-4)
    assert found.measured == pytest.approx(float(after[target] - before[target]), abs=1e-4)
    p, q = before.softmax(0), after.softmax(0)
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-4)
    for shift in found.shifts:
        assert (shift.before, shift.after) == pytest.approx(
            (float(p[shift.token_id]), float(q[shift.token_id])), abs=1e-5
        )
    shown = {shift.token_id for shift in found.shifts}
    assert {target, *p.topk(5).indices.tolist(), *q.topk(5).indices.tolist()} <= shown


def test_a_feature_that_is_not_active_changes_nothing(tiny: Prober) -> None:
    active = {row.feature_index for row in attribute(tiny, "ok", max_features=500).features}
    silent = next(i for i in range(48) if i not in active)
    found = ablate(tiny, "ok", features=[silent])
    assert (found.measured, found.predicted) == pytest.approx((0, 0), abs=1e-6)
    assert found.kl == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_on_the_demo_model_ablation_and_prediction_agree_in_sign_for_the_top_rows(tmp_path: Path) -> None:
    model = load_model("demo")
    sae = random_sae(model.info.d_model, 512, 16, seed=3)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.zero_()
    prober = Prober(save_sae(sae, tmp_path / "sae", model, layer=3, hook="resid_post", context_size=64), model=model)
    text = 'def add(a, b):\n    """Return the sum of a and b."""\n    return a +'
    top = [row.feature_index for row in attribute(prober, text).features[:8]]
    found = ablate(prober, text, features=top)
    assert [one.measured * one.predicted > 0 for one in found.alone] == [True] * 8
    assert found.measured * found.predicted > 0


def test_a_target_is_named_by_its_text_or_its_number(tiny: Prober) -> None:
    tokenizer = tiny.model.tokenizer
    the = tokenizer.encode(" the", add_special_tokens=False)
    assert len(the) == 1
    assert attribute(tiny, TEXT, target=" the").target.token_id == the[0]
    assert attribute(tiny, TEXT, target=f"#{the[0]}").target.token == " the"
    difference = attribute(tiny, TEXT, target=" the", against="#7")
    plain = [attribute(tiny, TEXT, target=name).explained for name in (" the", "#7")]
    assert difference.explained == pytest.approx(plain[0] - plain[1], abs=1e-4)
    assert difference.against is not None and difference.against.token_id == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "many words at once"}, ("tokens to this model", "give one")),
        ({"target": "#99999999"}, ("no #99999999",)),
        ({"target": "#7", "against": "#7"}, ("the same",)),
        ({"token": 5000}, ("no token 5000",)),
    ],
)
def test_what_cannot_be_explained_is_refused(options: dict[str, object], words: tuple[str, ...], tiny: Prober) -> None:
    with pytest.raises(PromptError) as caught:
        attribute(tiny, TEXT, **options)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)


def test_what_cannot_be_taken_out_is_refused(tiny: Prober) -> None:
    with pytest.raises(NotFoundError):
        ablate(tiny, TEXT, features=[48])
    for features in ([], list(range(17))):
        with pytest.raises(PromptError):
            ablate(tiny, TEXT, features=features)


def test_a_model_that_predicts_nothing_is_refused(tmp_path: Path) -> None:
    prober = prober_of(load_model(str(save_tiny_model(tmp_path / "model", "bert"))), tmp_path)
    with pytest.raises(ModelError, match="predicts no next token"):
        attribute(prober, TEXT)
