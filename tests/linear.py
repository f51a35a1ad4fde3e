"""A language model that is linear in its embeddings, so that what moves its logits is known without a gradient."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sae_core.model import LanguageModel
from sae_core.records import ModelInfo
from tests.tiny import tiny_tokenizer

D_MODEL, N_LAYERS = 16, 2


class Block(nn.Module):
    """Adds to each token a mixture of the tokens so far, and a product of its own vector: no nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Linear(D_MODEL, D_MODEL), nn.Linear(D_MODEL, D_MODEL)

    def forward(self, x: Tensor) -> Tensor:
        so_far = x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1)[:, None]
        x = x + self.self_attn(so_far)
        return x + self.mlp(x)


class LinearLM(nn.Module):
    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        text_config = SimpleNamespace(num_hidden_layers=N_LAYERS)
        self.config = SimpleNamespace(get_text_config=lambda: text_config)
        self.embeddings = nn.Embedding(n_tokens, D_MODEL)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(Block() for _ in range(N_LAYERS))
        self.model.norm = nn.Identity()
        self.head = nn.Linear(D_MODEL, n_tokens, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        x = self.embeddings(input_ids)
        for block in self.model.layers:
            x = block(x)
        return SimpleNamespace(logits=self.head(self.model.norm(x)))


def linear_model() -> LanguageModel:
    """Seeded, with the tokenizer of the tiny Llama."""
    tokenizer = tiny_tokenizer("byte_bpe_bos")
    module = LinearLM(len(tokenizer))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    info = ModelInfo(
        model_name="linear", revision="planted", architecture="LinearLM", n_layers=N_LAYERS, d_model=D_MODEL
    )
    return LanguageModel(module, tokenizer, info)
