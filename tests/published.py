"""Files as other tools publish SAEs, written by hand from their layouts, with the slow, obvious formula of each.

Each `…_files(folder)` writes one and returns what it computes: a function of model_acts (N, D_IN) that gives
feature_acts (N, D_SAE) and sae_out, dense, written from that tool's own code and not from ours.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_core.sae import SAE

D_IN, D_SAE, D_OUT, K = 32, 96, 32, 6

Computes = Callable[[Tensor], tuple[Tensor, Tensor]]


def tensors(*, seed: int = 0, d_in: int = D_IN, d_sae: int = D_SAE, d_out: int = D_OUT) -> dict[str, Tensor]:
    """Weights with nothing at an initial value and decoder rows of any norm, so that no term can be forgotten."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "W_enc": draw(d_in, d_sae) / d_in**0.5,
        "W_dec": draw(d_sae, d_out) / d_out**0.5 * (0.5 + torch.rand(d_sae, 1, generator=generator)),
        "b_enc": 0.3 * draw(d_sae),
        "b_dec": 0.3 * draw(d_out),
        "threshold": 0.5 * torch.rand(d_sae, generator=generator),
        "b_gate": 0.3 * draw(d_sae),
        "b_mag": 0.3 * draw(d_sae),
        "r_mag": 0.3 * draw(d_sae),
        "W_skip": 0.2 * draw(d_out, d_in),
    }


def model_acts(n: int = 64, *, seed: int = 7) -> Tensor:
    return 1.5 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) + 0.5


def top_k(pre_acts: Tensor, k: int) -> Tensor:
    """ReLU of the k largest of each row."""
    kept = pre_acts.topk(k, dim=1)
    return torch.zeros_like(pre_acts).scatter(1, kept.indices, kept.values.relu())


def agrees(sae: SAE, computes: Computes) -> None:
    """Checks that the SAE computes this, and that it is something."""
    x = model_acts()
    feature_acts, sae_out = computes(x)
    code = sae.encode(x)
    assert 0 < int((feature_acts > 0).sum()) < feature_acts.numel()
    torch.testing.assert_close(code.dense(), feature_acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.decode(code), sae_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x), sae_out, atol=1e-5, rtol=1e-5)


def saelens_files(folder: Path, kind: str, *, config: dict[str, Any] | None = None, seed: int = 0) -> Computes:
    """SAELens 6. `config` changes or adds settings."""
    t = tensors(seed=seed)
    settings: dict[str, Any] = {
        "architecture": kind,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": "transcoder" not in kind,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": "tiny",
            "hook_name": "blocks.1.hook_mlp_in" if "transcoder" in kind else "blocks.1.hook_resid_post",
            "hook_name_out": "blocks.1.hook_mlp_out",
            "context_size": 64,
            "prepend_bos": True,
        },
    }
    settings |= {"k": K, "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}
    settings |= {"d_out": D_OUT} if "transcoder" in kind else {}
    settings |= config or {}
    names = ["W_enc", "W_dec", "b_dec", *(("b_gate", "b_mag", "r_mag") if kind == "gated" else ("b_enc",))]
    names += ["threshold"] if "jumprelu" in kind else []
    names += ["W_skip"] if "skip" in kind else []
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t[name] for name in names}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))

    def computes(x: Tensor) -> tuple[Tensor, Tensor]:
        sae_in, scale, offset = x, torch.ones(len(x), 1), torch.zeros(len(x), 1)
        if settings["normalize_activations"] == "layer_norm":
            offset = x.mean(dim=1, keepdim=True)
            scale = (x - offset).std(dim=1, keepdim=True)
            sae_in = (x - offset) / (scale + 1e-5)
        elif settings["normalize_activations"] == "constant_norm_rescale":
            scale = x.norm(dim=1, keepdim=True) / D_IN**0.5
            sae_in = x / scale
        sae_in = sae_in - t["b_dec"] if settings["apply_b_dec_to_input"] else sae_in
        if kind == "gated":
            gate = sae_in @ t["W_enc"] + t["b_gate"]
            acts = (gate > 0) * (sae_in @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
            return acts, (acts @ t["W_dec"] + t["b_dec"]) * scale + offset
        pre_acts = sae_in @ t["W_enc"] + t["b_enc"]
        W_dec = t["W_dec"]
        if settings.get("rescale_acts_by_decoder_norm"):
            norms = W_dec.norm(dim=1)
            pre_acts, W_dec = pre_acts * norms, W_dec / norms.unsqueeze(1)
        acts = top_k(pre_acts, K) if kind == "topk" else pre_acts.relu()
        acts = acts * (pre_acts > t["threshold"]) if "jumprelu" in kind else acts
        sae_out = acts @ W_dec + t["b_dec"]
        sae_out = sae_out if "transcoder" in kind else sae_out * scale + offset
        return acts, sae_out + x @ t["W_skip"].T if "skip" in kind else sae_out

    return computes


def sparsify_files(folder: Path, *, config: dict[str, Any] | None = None, seed: int = 0) -> Computes:
    """sparsify 1.3. `num_latents` is 0, as it writes by default."""
    t = tensors(seed=seed)
    settings: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": D_SAE // D_IN,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_IN,
        **(config or {}),
    }
    found = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "W_dec": t["W_dec"], "b_dec": t["b_dec"]}
    found |= {"W_skip": t["W_skip"]} if settings["skip_connection"] else {}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))

    def computes(x: Tensor) -> tuple[Tensor, Tensor]:
        pre_acts = ((x if settings["transcode"] else x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
        if settings["activation"] == "groupmax":
            acts = torch.zeros_like(pre_acts)
            for row, group in itertools.product(range(len(x)), range(K)):
                features = range(group * D_SAE // K, (group + 1) * D_SAE // K)
                best = max(features, key=lambda feature: float(pre_acts[row, feature]))
                acts[row, best] = pre_acts[row, best]
        else:
            acts = top_k(pre_acts, K)
        sae_out = acts @ t["W_dec"] + t["b_dec"]
        return acts, sae_out + x @ t["W_skip"].T if settings["skip_connection"] else sae_out

    return computes


DICTIONARIES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
)  # fmt: skip


def dictionary_files(folder: Path, dict_class: str, *, threshold: float = 0.4, seed: int = 0) -> Computes:
    """dictionary_learning 0.1. `threshold` is BatchTopK's."""
    t = tensors(seed=seed)
    linear = {"encoder.weight": t["W_enc"].T, "decoder.weight": t["W_dec"].T}
    top = {"b_dec": t["b_dec"], "k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(threshold)}
    found = {
        "AutoEncoder": {**linear, "encoder.bias": t["b_enc"], "bias": t["b_dec"]},
        "AutoEncoderNew": {**linear, "encoder.bias": t["b_enc"], "decoder.bias": t["b_dec"]},
        "GatedAutoEncoder": {
            **linear, "decoder_bias": t["b_dec"], "r_mag": t["r_mag"], "gate_bias": t["b_gate"], "mag_bias": t["b_mag"]
        },
        "AutoEncoderTopK": {**linear, "encoder.bias": t["b_enc"], **top},
        "BatchTopKSAE": {**linear, "encoder.bias": t["b_enc"], **top},
        "MatryoshkaBatchTopKSAE": {
            "W_enc": t["W_enc"], "W_dec": t["W_dec"], "b_enc": t["b_enc"], **top,
            "group_sizes": torch.tensor([D_SAE // 4, D_SAE // 4, D_SAE // 2]),
        },
        "JumpReluAutoEncoder": {name: t[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")},
    }[dict_class]  # fmt: skip
    trainer: dict[str, Any] = {
        "dict_class": dict_class,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "layer": 1,
        "lm_name": "tiny",
        "submodule_name": "resid_post_layer_1",
    }
    trainer |= {"k": K} if "TopK" in dict_class else {}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.contiguous() for name, tensor in found.items()}, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 64}}))

    def computes(x: Tensor) -> tuple[Tensor, Tensor]:
        W_dec = t["W_dec"]
        x = x if dict_class in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - t["b_dec"]
        pre_acts = x @ t["W_enc"] + t["b_enc"]
        if dict_class == "GatedAutoEncoder":
            pre_acts = x @ t["W_enc"]
            acts = (pre_acts + t["b_gate"] > 0) * (t["r_mag"].exp() * pre_acts + t["b_mag"]).relu()
        elif dict_class == "AutoEncoderTopK":
            acts = top_k(pre_acts, K)
        elif "BatchTopK" in dict_class:
            acts = pre_acts.relu() * (pre_acts.relu() > threshold)
        elif dict_class == "JumpReluAutoEncoder":
            acts = (pre_acts * (pre_acts > t["threshold"])).relu()
        else:
            acts = pre_acts.relu()
        if dict_class == "AutoEncoder":  # as its loader folds them
            norms = W_dec.norm(dim=1)
            acts, W_dec = acts * norms, W_dec / norms.unsqueeze(1)
        return acts, acts @ W_dec + t["b_dec"]

    return computes


def gemma_scope_files(folder: Path, *, is_second: bool = False, skips: bool = False, seed: int = 0) -> Computes:
    """Gemma Scope's params.npz; `is_second`: Gemma Scope 2's params.safetensors, of a transcoder if it `skips`."""
    t = tensors(seed=seed)
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    folder.mkdir(parents=True, exist_ok=True)
    if is_second:
        found = {name.lower(): t[name] for name in names}
        found |= {"affine_skip_connection": t["W_skip"].T.contiguous()} if skips else {}
        save_file(found, folder / "params.safetensors")
        config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": skips}
        hooks = ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output") if skips else ("output",)
        config |= {
            f"hf_hook_point_{at}": f"model.layers.1.{hook}" for at, hook in zip(("in", "out"), hooks, strict=False)
        }
        (folder / "config.json").write_text(json.dumps(config))
    else:
        np.savez(folder / "params.npz", **{name: t[name].numpy() for name in names})

    def computes(x: Tensor) -> tuple[Tensor, Tensor]:
        pre_acts = x @ t["W_enc"] + t["b_enc"]
        acts = (pre_acts > t["threshold"]) * pre_acts.relu()
        sae_out = acts @ t["W_dec"] + t["b_dec"]
        return acts, sae_out + x @ t["W_skip"].T if skips else sae_out

    return computes


def llama_scope_files(folder: Path, *, config: dict[str, Any] | None = None, seed: int = 0) -> Computes:
    """Llama Scope; settings without `jump_relu_threshold` are R1-Distill's."""
    t = tensors(seed=seed)
    settings: dict[str, Any] = {
        "d_model": D_IN,
        "d_sae": D_SAE,
        "hook_point_in": "blocks.1.hook_resid_post",
        "hook_point_out": "blocks.1.hook_resid_post",
        "jump_relu_threshold": 0.52,
        "sparsity_include_decoder_norm": False,
        "dataset_average_activation_norm": {"in": 9.0, "out": 9.0},
        "top_k": 50,
        **(config or {}),
    }
    found = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"]}
    found |= {"decoder.weight": t["W_dec"].T, "decoder.bias": t["b_dec"]}
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    if settings["jump_relu_threshold"] is None:
        del settings["jump_relu_threshold"]
        found["log_jumprelu_threshold"] = t["threshold"].log()
    found = {name: tensor.contiguous() for name, tensor in found.items()}
    save_file(found, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(settings))

    def computes(x: Tensor) -> tuple[Tensor, Tensor]:
        norms = settings["dataset_average_activation_norm"]
        pre_acts = (x * D_IN**0.5 / norms["in"]) @ t["W_enc"] + t["b_enc"]
        score = pre_acts * t["W_dec"].norm(dim=1) if settings["sparsity_include_decoder_norm"] else pre_acts
        acts = pre_acts.relu() * (score > settings.get("jump_relu_threshold", t["threshold"]))
        return acts, (acts @ t["W_dec"] + t["b_dec"]) * norms["out"] / D_OUT**0.5

    return computes


def openai_files(path: Path, activation: str, *, is_tied: bool = False, seed: int = 0) -> Computes:
    """OpenAI's sparse_autoencoder, at resid_post_mlp of layer 1."""
    t = tensors(seed=seed)
    t["W_dec"] = t["W_enc"].T if is_tied else t["W_dec"]
    found: dict[str, Any] = {"encoder.weight": t["W_enc"].T, "latent_bias": t["b_enc"], "pre_bias": t["b_dec"]}
    found |= {} if is_tied else {"decoder.weight": t["W_dec"].T}
    found |= {"activation": activation, "stats_last_nonzero": torch.arange(D_SAE)}
    found |= {"latents_activation_frequency": torch.rand(D_SAE), "latents_mean_square": torch.rand(D_SAE)}
    if activation == "TopK":
        found["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)

    def computes(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = torch.zeros(len(x), 1), torch.ones(len(x), 1)
        if activation == "TopK":
            mean = x.mean(dim=1, keepdim=True)
            std = (x - mean).std(dim=1, keepdim=True)
            x = (x - mean) / (std + 1e-5)
        pre_acts = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
        acts = top_k(pre_acts, K) if activation == "TopK" else pre_acts.relu()
        return acts, (acts @ t["W_dec"] + t["b_dec"]) * std + mean

    return computes


def turned_files(path: Path, kind: str, *, seed: int = 0) -> Computes:
    """Goodfire's and Qwen's files, whose matrices are linear layers'."""
    t = tensors(seed=seed)
    names = {
        "goodfire": ("encoder_linear.weight", "decoder_linear.weight", "encoder_linear.bias", "decoder_linear.bias"),
        "qwen_scope": ("W_enc", "W_dec", "b_enc", "b_dec"),
    }[kind]
    values = (t["W_enc"].T.contiguous(), t["W_dec"].T.contiguous(), t["b_enc"], t["b_dec"])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(zip(names, values, strict=True)), path)

    def computes(x: Tensor) -> tuple[Tensor, Tensor]:
        pre_acts = x @ t["W_enc"] + t["b_enc"]
        acts = top_k(pre_acts, K) if kind == "qwen_scope" else pre_acts.relu()
        return acts, acts @ t["W_dec"] + t["b_dec"]

    return computes
