"""Index one SAE on one text with saescope, SAEDashboard and sae_vis: what it costs above the work nobody can avoid.

    python -m benchmarks.index [--quick] [--no-peers] [--peer-features 256]

1. Make a random two-layer GPT-2 with the demo's tokenizer, 262,144 tokens of this Python's documentation in contexts of
   128, and random SAEs whose L0 is about 32: ReLU and TopK with 4,096 features, TopK with 16,384, and TopK on a quarter
   and on four times of the tokens.
2. Each contestant runs in a process of its own, one after the other, with one thread: the floor (the model to the hook
   and the encoder's product), saescope (from tokens to a database that pages are served from), the peers for the first
   features alone. Their time grows with these, so the whole is the measured part times the features' ratio.
3. Check saescope's top examples against a sort of all activations, and its maxima against the peers'.
4. A million features: the collectors fed with planted codes.
5. Planted databases (`benchmarks/store.py`): how fast examples are stored and feature pages read.
6. Print a card and, last, one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import store
from benchmarks.environments import ROOT, EnvironmentFailed, Recipe, python_of
from benchmarks.indexing.job import Job
from benchmarks.train import ENVIRONMENT, machine
from sae_core.corpus import iter_documents
from sae_core.loading import load_tokenizer
from sae_core.sae import ARCHITECTURES
from sae_core.tokens import framing, iter_contexts

CONTEXT_SIZE, LAYER, D_MODEL, K, TOKENS = 128, 1, 128, 32, 262_144
# Requirements that leave out which pyarrow works with their NumPy, and a torchvision that is imported for no use.
PEERS = {
    "saedashboard": Recipe(
        name="sae_dashboard", requirement="sae-dashboard==0.8.0 pyarrow==19.0.1", uninstall=("torchvision",)
    ),
    "sae_vis": Recipe(
        name="sae_vis",
        requirement="sae-vis==0.3.7 sae-lens<6 frozendict tabulate pyarrow==19.0.1",
        uninstall=("torchvision",),
    ),
}
TITLES = {"saedashboard": "SAEDashboard", "sae_vis": "sae_vis"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One SAE on so much text."""

    architecture: str
    d_sae: int
    tokens: int
    peers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.architecture} {self.d_sae:,} features, {self.tokens:,} tokens"


FULL = (
    Case(architecture="relu", d_sae=4096, tokens=TOKENS, peers=("saedashboard", "sae_vis")),
    Case(architecture="topk", d_sae=4096, tokens=TOKENS, peers=("saedashboard",)),
    Case(architecture="topk", d_sae=16_384, tokens=TOKENS),
    Case(architecture="topk", d_sae=4096, tokens=4 * TOKENS),
)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints a card and, last, one line of JSON."""
    arguments = _arguments(argv)
    cases = tuple(replace(case, tokens=case.tokens // 16) for case in FULL[:2]) if arguments.quick else FULL
    results = []
    with tempfile.TemporaryDirectory(prefix="saescope-bench-") as name:
        folder = Path(name)
        _say("making the model and the tokens")
        tokens = write_model_and_tokens(folder, max(case.tokens for case in cases))
        pythons = {} if arguments.no_peers else _installed()
        for number, case in enumerate(cases):
            job = write_job(folder / str(number), case, folder, tokens, n_features=arguments.peer_features)
            results.append(measured(case, job, {name: pythons[name] for name in case.peers if name in pythons}))
        wide = run("planted", "planted codes", planted_job(folder, quick=arguments.quick), Path(sys.executable))
        planted = store.measured(folder, quick=arguments.quick)
    print(card(results, wide, planted), end="\n\n")
    print(json.dumps(as_json(results, wide, planted)))


def write_model_and_tokens(folder: Path, n_tokens: int) -> Path:
    """A random GPT-2 with the demo's tokenizer in `folder`/model, and its contexts, BOS first, as a file."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = load_tokenizer("demo")
    frame = framing(tokenizer)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT_SIZE,
        n_embd=D_MODEL,
        n_layer=LAYER + 1,
        n_head=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.bos_token_id,
        initializer_range=0.1,
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    documents = iter_documents(("python-docs",))
    rows = []
    for context in iter_contexts(documents, tokenizer, context_size=CONTEXT_SIZE, frame=frame):
        if len(context.token_ids) == CONTEXT_SIZE:
            rows.append(context.token_ids.astype(np.uint16))
        if len(rows) * CONTEXT_SIZE >= n_tokens:
            break
    np.save(folder / "tokens.npy", np.stack(rows))
    return folder / "tokens.npy"


def write_job(own: Path, case: Case, folder: Path, tokens: Path, *, n_features: int) -> Job:
    """The SAE, its tokens and the job as files in a folder of their own."""
    from sae_core.loading import load_model

    own.mkdir()
    chosen = np.load(tokens)[: case.tokens // CONTEXT_SIZE]
    np.save(own / "tokens.npy", chosen)
    model = load_model(str(folder / "model"))
    torch.manual_seed(2)
    sae = ARCHITECTURES[case.architecture](D_MODEL, case.d_sae, K)
    directions = torch.nn.functional.normalize(torch.randn(case.d_sae, D_MODEL), dim=1)
    hook = f"blocks.{LAYER}.hook_resid_post"
    with torch.inference_mode(), model.reading((hook,)) as read:
        ids = torch.from_numpy(chosen[:: len(chosen) // 64].astype(np.int64))
        (acts,) = read(ids, torch.ones_like(ids, dtype=torch.bool))
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.b_dec.copy_(acts[:, 1:].mean(dim=(0, 1)))
        if case.architecture == "relu":
            pre_acts = acts[:, 1:].reshape(-1, D_MODEL) @ sae.W_enc  # (rows, d_sae)
            sae.b_enc.copy_(-pre_acts.kthvalue(round((1 - K / case.d_sae) * len(pre_acts)), dim=0).values)
    sae.save(own / "sae")
    return Job(
        folder=str(folder / "model"),
        sae=str(own / "sae"),
        tokens=str(own / "tokens.npy"),
        architecture=case.architecture,
        layer=LAYER,
        d_sae=case.d_sae,
        k=K,
        n_features=min(n_features, case.d_sae),
        database=str(own / "saescope.db"),
    )


def _installed() -> dict[str, Path]:
    """The peers' Pythons; one that cannot be installed is left out, and why is said."""
    pythons = {}
    for name, recipe in PEERS.items():
        try:
            pythons[name] = python_of(recipe)
        except EnvironmentFailed as failure:
            _say(f"{TITLES[name]} could not be installed: {failure}")
    return pythons


def measured(case: Case, job: Job, peers: Mapping[str, Path]) -> dict[str, Any]:
    """What one case cost everybody; `peers` by name, with their Pythons."""
    floor = run("floor", case.name, job, Path(sys.executable))
    ours = run("ours", case.name, job, Path(sys.executable))
    result: dict[str, Any] = {"case": case.name, "floor": floor, "ours": ours, "peers": {}}
    again = run("floor", case.name, job, Path(sys.executable))
    result["floor"] = {**floor, "cpu_s": min(floor["cpu_s"], again["cpu_s"])}
    for name, python in peers.items():
        theirs = run(name, case.name, job, python)
        whole = theirs["cpu_s"] * job.d_sae / job.n_features
        agreeing = np.isclose(theirs.pop("maxima"), ours["maxima"], rtol=2e-3, atol=1e-3)
        result["peers"][name] = theirs | {"whole_cpu_s": whole, "maxima_agree": float(agreeing.mean())}
    ours.pop("maxima")
    return result


def run(name: str, case: str, job: Job, python: Path) -> dict[str, Any]:
    """The answer of one contestant's process."""
    _say(f"{case}: {name}")
    path = Path(job.sae).parent / "job.json"
    job.save(path)
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [str(python), "-m", f"benchmarks.indexing.{name}", str(path)],
        cwd=ROOT,
        env=inherited | ENVIRONMENT | threads,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"bench index: {name} failed: {(done.stderr.strip() or done.stdout).splitlines()[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def planted_job(folder: Path, *, quick: bool) -> Job:
    """A million features on 16,384 contexts of planted codes: 134 firings each."""
    (folder / "planted").mkdir()
    return Job(
        folder=str(folder),
        sae=str(folder / "planted" / "sae"),
        tokens="",
        architecture="planted",
        layer=0,
        d_sae=16_384 if quick else 1_000_000,
        k=64,
        n_features=512 if quick else 16_384,
    )


def card(results: list[dict[str, Any]], wide: dict[str, Any], planted: dict[str, Any]) -> str:
    lines = [f"saescope index, one thread; {machine()}"]
    for result in results:
        floor, ours = result["floor"], result["ours"]
        lines += [
            "",
            result["case"],
            f"  floor          {floor['cpu_s']:8.1f} s of CPU  ({floor['forward_s']:.1f} model, "
            f"{floor['encode_s']:.1f} encoder)",
            f"  saescope       {ours['cpu_s']:8.1f} s  {ours['cpu_s'] / floor['cpu_s']:.2f} x the floor, "
            f"{ours['store_s']:.1f} s of it the database; {ours['peak_gib']:.1f} GiB",
            f"                 {ours['database_bytes'] / max(ours['n_examples'], 1):8.0f} bytes an example "
            f"({ours['n_examples']:,} examples); {ours['features_wrong']} of {ours['features_checked']} features "
            "differ from brute force",
        ]
        for name, theirs in result["peers"].items():
            ratio = theirs["whole_cpu_s"] / ours["cpu_s"]
            lines.append(
                f"  {TITLES[name]:<14} {theirs['whole_cpu_s']:8.0f} s  saescope is {ratio:.0f} x as fast "
                f"({theirs['cpu_s']:.0f} s for {theirs['n_features']} features; {theirs['peak_gib']:.1f} GiB; "
                f"same maximum for {theirs['maxima_agree']:.0%})"
            )
    lines += [
        "",
        f"{wide['d_sae']:,} features, planted codes: {wide['entries']:,} activations collected in "
        f"{wide['collected_s']:.0f} s, {wide['examples']:,} examples made in {wide['examples_s']:.0f} s; "
        f"{wide['peak_gib']:.1f} GiB",
    ]
    return "\n".join([*lines, "", store.card(planted)])


def as_json(results: list[dict[str, Any]], wide: dict[str, Any], planted: dict[str, Any]) -> dict[str, Any]:
    first = results[0]
    peers = {name: theirs["whole_cpu_s"] for name, theirs in first["peers"].items()}
    return {
        "bench": "index",
        "unit": "CPU s",
        "ours": first["ours"]["cpu_s"],
        "floor": first["floor"]["cpu_s"],
        "peers": peers,
        "quality": {"features_wrong": [result["ours"]["features_wrong"] for result in results]},
        "cases": results,
        "planted": wide,
        "store": planted,
        "setting": {"context_size": CONTEXT_SIZE, "d_in": D_MODEL, "k": K, "threads": 1},
        "machine": machine(),
    }


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description="Index an SAE, and compare.")
    parser.add_argument("--quick", action="store_true", help="little text and small databases: shows that it works")
    parser.add_argument("--no-peers", action="store_true", help="measure saescope and the floor alone")
    parser.add_argument("--peer-features", type=int, default=256, metavar="N", help="that a peer makes data for (256)")
    return parser.parse_args(argv)


def _say(what: str) -> None:
    print(f"bench index: {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
