import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from sae_core.config import ARCHITECTURES, HOOKS, IndexConfig, TrainConfig, check_slug
from sae_core.errors import ConfigError

Refuses = Callable[..., AbstractContextManager[None]]


def train_config(**values: Any) -> TrainConfig:
    return TrainConfig(**{"model": "demo", "layer": 3, "corpus": ("python-docs",), **values})


def index_config(**values: Any) -> IndexConfig:
    return IndexConfig(**{"slug": "demo", "corpus": ("python-docs",), **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": ""}, ["model"]),
        ({"layer": -1}, ["layer", "-1"]),
        ({"corpus": ()}, ["corpus"]),
        ({"hook": "resid_middle"}, ["'resid_middle'", *HOOKS]),
        ({"target_hook": "resid_middle"}, ["'resid_middle'", *HOOKS]),
        ({"target_layer": 4}, ["target_layer", "target_hook"]),
        ({"target_layer": -1, "target_hook": "mlp_out"}, ["target_layer is -1"]),
        ({"architecture": "vanilla"}, ["'vanilla'", *ARCHITECTURES]),
        ({"architecture": "batchtopk", "multi_topk": True}, ["multi_topk", "batchtopk"]),
        ({"sparsity": 1.0}, ["sparsity", "topk", "relu"]),
        ({"sparsity": -1.0, "architecture": "relu"}, ["sparsity is -1.0"]),
        ({"sparsity": math.nan, "architecture": "relu"}, ["sparsity is nan"]),
        ({"sparsity_warmup_share": 1.5}, ["sparsity_warmup_share is 1.5"]),
        ({"aux_coefficient": -1.0}, ["aux_coefficient is -1.0"]),
        ({"bias_lift": -1.0}, ["bias_lift is -1.0"]),
        ({"dead_after_tokens": 0}, ["dead_after_tokens is 0"]),
        ({"seed": -1}, ["seed is -1"]),
        ({"seed": 2**31}, ["seed is 2147483648", "2147483647"]),
        ({"data_seed": -1}, ["data_seed is -1"]),
        ({"data_seed": 2**31}, ["data_seed is 2147483648"]),
        ({"d_sae": 0}, ["d_sae is 0"]),
        ({"k": 0}, ["k is 0"]),
        ({"k": 65, "d_sae": 64}, ["k (65)", "d_sae (64)"]),
        ({"tokens": 0}, ["tokens is 0"]),
        ({"context_size": 1}, ["context_size is 1"]),
        ({"batch_tokens": 0}, ["batch_tokens is 0"]),
        ({"batch_tokens": 100, "buffer_tokens": 199}, ["buffer_tokens (199)", "batch_tokens (100)"]),
        ({"warmup_share": -0.1}, ["warmup_share is -0.1"]),
        ({"warmup_share": 1.1}, ["warmup_share is 1.1"]),
        ({"decay_share": -0.1}, ["decay_share is -0.1"]),
        ({"decay_share": math.nan}, ["decay_share is nan"]),
        ({"learning_rate": 0.0}, ["learning_rate"]),
        ({"learning_rate": math.nan}, ["learning_rate"]),
        ({"dtype": "float64"}, ["'float64'", "bfloat16"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_value_of_a_training_is_refused_in_one_sentence(
    values: dict[str, Any], words: list[str], refuses: Refuses
) -> None:
    with refuses(ConfigError, *words):
        train_config(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"corpus": ()}, ["corpus"]),
        ({"tokens": 0}, ["tokens is 0"]),
        ({"context_size": 1}, ["context_size is 1"]),
        ({"top_examples": 0}, ["top_examples is 0"]),
        ({"context_size": 65_537}, ["context_size is 65537", "65,536 positions"]),
        ({"random_examples": 101}, ["random_examples is 101", "at most 100"]),
        ({"dense_threshold": 0.0}, ["dense_threshold is 0.0"]),
        ({"dense_threshold": 1.5}, ["dense_threshold is 1.5"]),
        ({"batch_contexts": 0}, ["batch_contexts is 0"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_value_of_an_index_is_refused_in_one_sentence(
    values: dict[str, Any], words: list[str], refuses: Refuses
) -> None:
    with refuses(ConfigError, *words):
        index_config(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"layer": 0, "d_sae": 1, "k": 1, "tokens": 1, "context_size": 2, "batch_tokens": 1, "buffer_tokens": 2},
        {"k": 64, "d_sae": 64},
        {"batch_tokens": 100, "buffer_tokens": 200},
        {"warmup_share": 0.0, "decay_share": 1.0, "sparsity_warmup_share": 0.0},
        {"seed": 2**31 - 1, "data_seed": 2**31 - 1},
        {"architecture": "jumprelu", "sparsity": 0.0},
        {"aux_coefficient": 0.0, "bias_lift": 0.0, "dead_after_tokens": 1},
    ],
    ids=[
        "smallest",
        "k-is-d_sae",
        "buffer-of-two-batches",
        "shares-at-their-ends",
        "largest-seeds",
        "no-sparsity",
        "nothing-revives",
    ],
)
def test_values_at_their_limits_are_allowed(values: dict[str, Any]) -> None:
    config = train_config(**values)

    assert {name: getattr(config, name) for name in values} == values


def test_an_index_may_read_all_tokens_and_keep_the_context_size_of_its_sae() -> None:
    config = index_config(tokens=None, context_size=None, dense_threshold=1.0)

    assert (config.tokens, config.context_size, config.dense_threshold) == (None, None, 1.0)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        train_config().k = 5  # type: ignore[misc]


def test_the_hook_name_is_spelt_as_published_saes_spell_it() -> None:
    assert train_config(layer=6, hook="mlp_out").hook_name == "blocks.6.hook_mlp_out"
    assert train_config(layer=6, hook="mlp_out").target_hook_name is None


def test_a_transcoder_has_a_target_in_the_same_block_or_in_another() -> None:
    transcoder = {"layer": 6, "hook": "mlp_in", "target_hook": "mlp_out"}

    assert train_config(**transcoder).target_hook_name == "blocks.6.hook_mlp_out"
    assert train_config(**transcoder, target_layer=0).target_hook_name == "blocks.0.hook_mlp_out"
    assert train_config(**transcoder, target_layer=9).hook_name == "blocks.6.hook_mlp_in"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "corpus": ("数据/*.txt", "b.jsonl"),
            "prepend_bos": False,
            "learning_rate": 3e-4,
            "device": "cpu",
            "seed": 7,
            "architecture": "gated",
            "sparsity": 0.5,
            "hook": "mlp_in",
            "target_hook": "mlp_out",
            "target_layer": 5,
            "cache_activations": True,
        },
    ],
    ids=["defaults", "everything-set"],
)
def test_a_saved_config_loads_as_itself(values: dict[str, Any], tmp_path: Path) -> None:
    config = train_config(**values)

    config.save(tmp_path / "config.json")

    assert TrainConfig.load(tmp_path / "config.json") == config


def test_a_config_of_an_earlier_version_loads_with_the_defaults_of_what_it_did_not_know(tmp_path: Path) -> None:
    train_config(k=7).save(tmp_path / "config.json")
    values = json.loads((tmp_path / "config.json").read_text())
    added = ("target_hook", "target_layer", "architecture", "multi_topk", "sparsity", "data_seed", "cache_activations")
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k not in added}))

    assert TrainConfig.load(tmp_path / "config.json") == train_config(k=7)


def test_a_saved_config_is_checked_when_loaded(tmp_path: Path, refuses: Refuses) -> None:
    train_config().save(tmp_path / "config.json")
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "k": 0}))

    with refuses(ConfigError, "k is 0"):
        TrainConfig.load(tmp_path / "config.json")


@pytest.mark.parametrize("slug", ["a", "7", "demo", "llama-3.2_l6", "a" * 100])
def test_a_slug_that_can_stand_in_a_url_is_kept(slug: str) -> None:
    assert check_slug(slug) == slug


@pytest.mark.parametrize(
    "slug",
    ["", "A", "-a", ".", "..", "_a", "a/b", "a b", "a\n", "ü", "a?b", "a%2f", "a" * 101],
    ids=ascii,
)
def test_any_other_slug_is_refused(slug: str) -> None:
    with pytest.raises(ConfigError, match=r"slug .* cannot be used"):
        check_slug(slug)
