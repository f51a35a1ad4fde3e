"""What the page Learn points to: the kinds of SAEs in a sentence each, the field's key papers, and its tools."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """A paper, as it is cited, and what a reader finds in it."""

    title: str
    authors: str
    year: int
    address: str
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program or a site of others that works with SAEs."""

    name: str
    address: str
    about: str


ARCHITECTURES: dict[str, tuple[str, str]] = {
    "topk": ("TopK", "On every token the k largest values stay and all others become 0: always k active features."),
    "batchtopk": (
        "BatchTopK",
        "In training the largest values of a whole batch stay, k a token on average; in use, those above one "
        "threshold. A difficult token may have more features than an easy one.",
    ),
    "matryoshka": (
        "Matryoshka",
        "BatchTopK, but the first features must reconstruct by themselves too, in nested groups, so that general "
        "features are not swallowed by special ones.",
    ),
    "jumprelu": (
        "JumpReLU",
        "Every feature has a threshold of its own that it learned; below it the value becomes 0, above it it stays.",
    ),
    "gated": (
        "Gated",
        "One calculation decides which features are active, another one how strongly, so that keeping features few "
        "does not make them too weak.",
    ),
    "relu": (
        "ReLU",
        "Negative values become 0; a penalty on the sum of all activations keeps active features few, and makes them a "
        "little too weak.",
    ),
}

_CIRCUITS, _ARXIV, _GITHUB = "https://transformer-circuits.pub", "https://arxiv.org/abs", "https://github.com"

PAPERS = (
    Paper(
        title="Toy Models of Superposition",
        authors="Elhage et al.",
        year=2022,
        address=f"{_CIRCUITS}/2022/toy_model/index.html",
        about="why a model can hold more features than it has dimensions",
    ),
    Paper(
        title="Sparse Autoencoders Find Highly Interpretable Features in Language Models",
        authors="Cunningham et al.",
        year=2023,
        address=f"{_ARXIV}/2309.08600",
        about="SAEs on a language model, and how much clearer their features are than neurons",
    ),
    Paper(
        title="Towards Monosemanticity: Decomposing Language Models With Dictionary Learning",
        authors="Bricken et al.",
        year=2023,
        address=f"{_CIRCUITS}/2023/monosemantic-features/index.html",
        about="one small model's features looked at from every side",
    ),
    Paper(
        title="Scaling Monosemanticity: Extracting Interpretable Features from Claude 3 Sonnet",
        authors="Templeton et al.",
        year=2024,
        address=f"{_CIRCUITS}/2024/scaling-monosemanticity/index.html",
        about="millions of features of a large model, and what steering with them does",
    ),
    Paper(
        title="Improving Dictionary Learning with Gated Sparse Autoencoders",
        authors="Rajamanoharan et al.",
        year=2024,
        address=f"{_ARXIV}/2404.16014",
        about="the gated architecture, against shrinkage",
    ),
    Paper(
        title="Scaling and evaluating sparse autoencoders",
        authors="Gao et al.",
        year=2024,
        address=f"{_ARXIV}/2406.04093",
        about="TopK, dead features, and how quality grows with size",
    ),
    Paper(
        title="Transcoders Find Interpretable LLM Feature Circuits",
        authors="Dunefsky et al.",
        year=2024,
        address=f"{_ARXIV}/2406.11944",
        about="features that stand for what a layer computes, not for what it holds",
    ),
    Paper(
        title="Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders",
        authors="Rajamanoharan et al.",
        year=2024,
        address=f"{_ARXIV}/2407.14435",
        about="a learned threshold for each feature",
    ),
    Paper(
        title="BatchTopK Sparse Autoencoders",
        authors="Bussmann et al.",
        year=2024,
        address=f"{_ARXIV}/2412.06410",
        about="as many features for a token as it needs",
    ),
    Paper(
        title="SAEBench: A Comprehensive Benchmark for Sparse Autoencoders in Language Model Interpretability",
        authors="Karvonen et al.",
        year=2025,
        address=f"{_ARXIV}/2503.09532",
        about="what a low error does and does not say about use",
    ),
    Paper(
        title="Learning Multi-Level Features with Matryoshka Sparse Autoencoders",
        authors="Bussmann et al.",
        year=2025,
        address=f"{_ARXIV}/2503.17547",
        about="nested groups of features, from general to special",
    ),
)

TOOLS = (
    Tool(
        name="Neuronpedia", address="https://www.neuronpedia.org", about="a public site with the features of many SAEs"
    ),
    Tool(name="SAELens", address=f"{_GITHUB}/decoderesearch/SAELens", about="trains SAEs and loads published ones"),
    Tool(name="sparsify", address=f"{_GITHUB}/EleutherAI/sparsify", about="trains TopK SAEs and transcoders"),
    Tool(
        name="dictionary_learning",
        address=f"{_GITHUB}/saprmarks/dictionary_learning",
        about="trains SAEs of many architectures for research",
    ),
    Tool(
        name="TransformerLens",
        address=f"{_GITHUB}/TransformerLensOrg/TransformerLens",
        about="reads and changes what goes on inside a language model; the names of hooks come from it",
    ),
    Tool(
        name="nnsight", address=f"{_GITHUB}/ndif-team/nnsight", about="does so for any PyTorch model, also on a server"
    ),
)
