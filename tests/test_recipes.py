"""docs/recipes: each page has the table that is computed, and commands that this version understands."""

import re
import shlex
from pathlib import Path

import pytest

from app import cli
from benchmarks.recipes import CORE_RATE, RECIPES, table

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs" / "recipes").glob("*.md") if path.stem != "README")


def commands(page: Path) -> list[list[str]]:
    (block,) = re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_every_family_has_its_page_and_every_page_is_listed() -> None:
    listed = re.findall(r"\]\((\w+)\.md\)", (ROOT / "docs" / "recipes" / "README.md").read_text(encoding="utf-8"))

    assert sorted(listed) == sorted(RECIPES) == [page.stem for page in PAGES]
    assert "docs/recipes/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_table_is_the_computed_one(page: Path) -> None:
    assert table(page.stem) in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_are_understood_and_fit_the_table(page: Path) -> None:
    from sae_core.arguments import train_config
    from sae_core.train import default_slug

    own = [words[1:] for words in commands(page) if words[0] == "saescope"]
    train, index, serve = (cli.make_parser().parse_args(words) for words in own)
    config = train_config(train)
    recipe = next(recipe for recipe in RECIPES[page.stem] if recipe.name == train.model)

    assert (config.layer, config.d_sae, config.tokens, config.dtype) == (
        recipe.layer, recipe.d_sae, recipe.tokens, recipe.dtype,
    )  # fmt: skip
    assert (index.slug, index.tokens) == (default_slug(config), recipe.index_tokens)
    assert serve.run is cli.run_serve


def test_the_rate_of_a_core_is_the_measured_one() -> None:
    measured = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

    assert "| floor, float32 | 132 | 30,952 |" in measured and "d_in 256" in measured
    assert pytest.approx(65e9, rel=0.01) == CORE_RATE
    assert "65 GFLOP/s" in (ROOT / "docs" / "recipes" / "README.md").read_text(encoding="utf-8")
