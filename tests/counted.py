"""What a model reads at a hook of some contexts, all at once: what streams of activations are compared with."""

from torch import Tensor

from sae_core.activations import counted
from sae_core.model import LanguageModel
from sae_core.tokens import Framing, TokenContext


def counted_activations(
    model: LanguageModel, contexts: list[TokenContext], *, hook_name: str, frame: Framing
) -> Tensor:
    """`model_acts` (N, d_in) float32 of the tokens that count, in the order of the contexts."""
    with model.reading((hook_name,)) as read:
        return counted(model, contexts, read, frame=frame)[0].float()
