"""The commands that make an SAE and its index again are commands that saescope takes."""

import dataclasses
import shlex

import pytest

from app import provenance
from app.cli import make_parser
from sae_core.arguments import train_config
from sae_core.config import TrainConfig
from tests.factories import make_records, make_sae


def words(command: str) -> list[str]:
    assert max(map(len, command.splitlines())) <= 110
    return shlex.split(command.replace("\\\n", " "))[1:]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prepend_bos": False, "hook": "mlp_out", "learning_rate": 0.001},
        {"architecture": "relu", "sparsity": 0.5, "sparsity_warmup_share": 0.2, "warmup_share": 0.0},
        {"multi_topk": True, "aux_coefficient": 0.0, "dead_after_tokens": 9, "decay_share": 0.5, "data_seed": 3},
        {"hook": "mlp_in", "target_hook": "mlp_out", "target_layer": 4, "device": "cpu", "cache_activations": True},
    ],
)
def test_training_command_gives_the_same_settings(changes: dict[str, object]) -> None:
    config = TrainConfig(
        **{"model": "a model", "layer": 3, "corpus": ("x y.txt", "b"), "tokens": 5000, "d_sae": 64, **changes}  # type: ignore[arg-type]
    )
    command = provenance.train_command(make_sae(config=dataclasses.asdict(config)))
    assert command is not None
    parsed = make_parser().parse_args(words(command))
    changed = {"device": None, "cache_activations": False}  # of these nothing depends
    assert train_config(parsed) == dataclasses.replace(config, **changed)


def test_an_sae_that_was_not_trained_here_has_no_command() -> None:
    assert provenance.train_command(make_sae()) is None


def test_index_command_is_taken() -> None:
    info = make_records().info
    parsed = make_parser().parse_args(words(provenance.index_command(info)))
    assert (parsed.slug, parsed.corpus, parsed.context_size) == ("demo", ["stories.txt"], 32)


def test_settings_are_listed_without_empty_ones() -> None:
    rows = provenance.settings_rows({"k": 4096, "device": None, "corpus": ["a", "b"], "flag": True})
    assert rows == [("k", "4,096"), ("corpus", "a, b"), ("flag", "yes")]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prepend_bos": False, "input_scale": 0.25, "dtype": "bfloat16", "hook": "mlp_out"},
        {"target_hook": "blocks.4.hook_mlp_out", "hook": "mlp_in", "context_size": 64},
    ],
)
def test_an_imported_sae_is_made_again_by_importing_it(changes: dict[str, object]) -> None:
    config = {
        "model": "a model",
        "layer": 3,
        "hook": "resid_post",
        "imported_from": "their folder/x.pt",
        "format": "openai",
    }
    sae = make_sae(config={**config, **changes})

    command = provenance.train_command(sae)

    assert command is not None and sae.origin == "their folder/x.pt"
    parsed = make_parser().parse_args(words(command))
    said = {**config, **changes, "source": config["imported_from"], "slug": sae.slug}
    said |= {"target_hook": "mlp_out", "target_layer": 4} if "target_hook" in changes else {}
    del said["imported_from"]
    assert {name: getattr(parsed, name) for name in said} == said
