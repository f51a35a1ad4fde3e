"""Hook points in other tools' spellings, as ours: TransformerLens names, module paths of `transformers`, folder names.

What we have no hook point for gives None: the user then says with --hook which one is meant, if any is.
"""

import re

from sae_core.config import HOOKS

_OURS = "|".join(HOOKS)
# What stands behind a block's number -> the hook point; the first pattern that fits is taken.
_TRANSFORMER_LENS = (
    (rf"hook_({_OURS})", None),
    (r"hook_in", "resid_pre"),
    (r"hook_out", "resid_post"),
    (r"ln2\.hook_normalized|mlp\.hook_in", "mlp_in"),
    (r"mlp\.hook_post", "mlp_post"),
    (r"mlp\.hook_out", "mlp_out"),
    (r"attn\.hook_z", "z"),
    (r"attn\.hook_out", "attn_out"),
)
_BLOCK = r"(?:.*\.)?(?:layers|layer|h|blocks|block)\.(\d+)"
_MODULES = (
    (r"", "resid_post"),
    (r"\.output", "resid_post"),
    (r"\.input", "resid_pre"),
    (r"\.(?:mlp|feed_forward|ffn)(?:\.output)?", "mlp_out"),
    (r"\.post_feedforward_layernorm(?:\.output)?", "mlp_out"),
    (r"\.(?:mlp|feed_forward|ffn)\.input|\.pre_feedforward_layernorm\.output", "mlp_in"),
    (r"\.mlp\.(?:down_proj|c_proj|dense_4h_to_h)\.input", "mlp_post"),
    (r"\.(?:self_attn|attn|attention|self_attention)(?:\.output)?", "attn_out"),
    (r"\.self_attn\.o_proj\.input|\.attn\.c_proj\.input|\.attention\.dense\.input", "z"),
)
# What architectures call their blocks and the attention in one.
_USUAL = ("layers", "self_attn")
_BLOCKS = {
    "GPT2": ("h", "attn"),
    "GPTNeoX": ("layers", "attention"),
    "GPTNeo": ("h", "attn"),
    "GPTJ": ("h", "attn"),
    "Falcon": ("h", "self_attention"),
    "Bloom": ("h", "self_attention"),
    "Bert": ("encoder.layer", "attention"),
}
_INPUTS = {"resid_post": "resid_pre", "mlp_out": "mlp_in"}  # what the module reads that writes this


def our_hook_name(name: object) -> str | None:
    """`blocks.6.hook_resid_post` and its like, from any spelling that means one of ours."""
    if not isinstance(name, str):
        return None
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match:
        for pattern, kind in _TRANSFORMER_LENS:
            inner = re.fullmatch(pattern, match[2])
            if inner:
                return f"blocks.{int(match[1])}.hook_{kind or inner[1]}"
    match = re.fullmatch(r"(resid_post|resid_pre|mlp_out|attn_out|attention_out)_layer_?(\d+)", name)
    if match:
        kind = "attn_out" if match[1] == "attention_out" else match[1]
        return f"blocks.{int(match[2])}.hook_{kind}"
    for pattern, kind in _MODULES:
        match = re.fullmatch(f"{_BLOCK}(?:{pattern})", name)
        if match:
            return f"blocks.{int(match[1])}.hook_{kind}"
    return None


def transformer_lens_name(hook_name: str) -> str:
    """One of our names as TransformerLens has it."""
    return hook_name.replace(".hook_z", ".attn.hook_z").replace(".hook_mlp_post", ".mlp.hook_post")


def module_path(hook_name: str, architecture: str) -> str | None:
    """The module of `transformers` whose output one of our hook points is, below the base model: `layers.6.mlp`.

    None where it is no module's output. `architecture` is the model's class.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", hook_name)
    if match is None:
        return None
    blocks, attention = next((names for start, names in _BLOCKS.items() if architecture.startswith(start)), _USUAL)
    inner = {"resid_post": "", "mlp_out": ".mlp", "attn_out": f".{attention}"}.get(match[2])
    path = f"{blocks}.{match[1]}{inner}"
    return path if inner is not None and our_hook_name(path) == hook_name else None


def input_of(hook_name: str | None) -> str | None:
    """The hook point at which the module reads that writes this one: where its transcoder reads."""
    match = re.fullmatch(r"(blocks\.\d+\.hook_)(\w+)", hook_name or "")
    return match[1] + _INPUTS[match[2]] if match and match[2] in _INPUTS else None


def split(hook_name: str) -> tuple[int, str]:
    """Layer and hook point of one of our names."""
    match = re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", hook_name)
    if match is None:
        raise ValueError(hook_name)
    return int(match[1]), match[2]
