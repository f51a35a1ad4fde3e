"""`saescope label` and `saescope basis`: their options."""

import argparse

from app.settings import Settings
from sae_core.arguments import add_device_argument, count

KINDS = ("neurons", "coordinates", "pca")  # as in sae_core.explain.bases, which loads torch

LABEL = """\
Name features, and test each name on texts that it was not made from: in which of them does the feature fire, and are
the marked tokens the right ones. Beside each score stands that of another feature's name on the same texts.

With --patterns nobody is asked: runs of words with wildcards are fitted to a feature's examples, and the automatic
labels of the index are tested the same way. Otherwise a language model is asked, at any endpoint that speaks OpenAI's
chat completions (vLLM, Ollama, llama.cpp, LM Studio, OpenRouter, OpenAI): SAESCOPE_LLM_BASE_URL, SAESCOPE_LLM_MODEL
and, if it needs one, SAESCOPE_LLM_KEY. What that takes is said first. Each answer is stored at once: after Ctrl-C the
same command goes on, and nothing is asked twice. People's labels stay.

With --embed the labels that are there become vectors, by which the page of features is searched by meaning.
docs/explaining.md has the details."""

LABEL_EXAMPLES = """\
examples:
  saescope label SLUG --patterns
  SAESCOPE_LLM_BASE_URL=http://localhost:11434/v1 SAESCOPE_LLM_MODEL=llama3.1:8b saescope label SLUG --top 100
  saescope label SLUG --unlabelled --price-in 0.15 --price-out 0.6 --max-cost 5
  saescope label SLUG --embed sentence-transformers/all-MiniLM-L6-v2"""

BASIS = """\
Make something to compare an SAE with: the neurons of the MLP in its layer (neurons), the coordinates of the vectors
that it reads (coordinates; those of a residual stream are no neurons), or their principal components (pca). Either sign
of each is a feature, the k largest of a token are active. It is indexed, browsed, labelled and scored like an SAE, as
SLUG-neurons, SLUG-coordinates or SLUG-pca; the page of label scores shows what the SAE bought."""


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("slug", metavar="SLUG", help="the SAE, as `train` named it")
    which = parser.add_argument_group("which features")
    which.add_argument("--features", metavar="LIST", help="numbers and ranges: 1,5,9-12")
    which.add_argument("--top", type=count, metavar="N", help="the N densest")
    which.add_argument("--random", type=count, metavar="N", help="N drawn at random, the same each time")
    which.add_argument("--unlabelled", action="store_true", help="those that no person and no language model has named")
    which.add_argument("--corpus", metavar="NAME", help="on whose texts (the newest index)")
    how = parser.add_argument_group("by whom")
    how.add_argument("--patterns", action="store_true", help="by patterns, without a language model")
    how.add_argument("--embed", metavar="MODEL", help="by nobody: make vectors of labels by this embedding model")
    how.add_argument("--base-url", metavar="URL", help="root of the endpoint's API (SAESCOPE_LLM_BASE_URL)")
    how.add_argument("--model", metavar="NAME", help="as the endpoint knows it (SAESCOPE_LLM_MODEL)")
    how.add_argument("--concurrency", type=count, metavar="N", help="questions at a time (SAESCOPE_LLM_CONCURRENCY; 4)")
    cost = parser.add_argument_group("what it costs")
    cost.add_argument("--price-in", type=float, default=0.0, metavar="X", help="of a million tokens of questions (0)")
    cost.add_argument("--price-out", type=float, default=0.0, metavar="X", help="of a million tokens of answers (0)")
    cost.add_argument("--max-cost", type=float, metavar="X", help="stop before it costs more, in the prices' currency")
    cost.add_argument("--estimate", action="store_true", help="say what it will take, and ask nothing")


def add_basis_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("slug", metavar="SLUG", help="the SAE, as `train` named it")
    how = parser.add_argument_group("which basis")
    how.add_argument(
        "--kind",
        choices=KINDS,
        nargs="+",
        default=["neurons", "pca"],
        help="one or more: neurons, coordinates, pca (neurons and pca)",
    )
    how.add_argument("--k", type=count, metavar="N", help="features active on a token (as the SAE has)")
    add_device_argument(how)


def run_label(arguments: argparse.Namespace, settings: Settings) -> int:
    """The command; returns its exit code."""
    from app.explain import command

    return command.run_label(arguments, settings=settings)


def run_basis(arguments: argparse.Namespace, settings: Settings) -> int:
    """The command; returns its exit code."""
    from app.explain import basis

    return basis.run_basis(arguments, settings=settings)
