"""What the worker holds: models with their SAEs, within a budget of memory, the least recently used going first.

SAEs of one model share it; a model that makes vectors of texts stands beside them. How much something needs is known
before it is loaded; what cannot fit is refused with the numbers, and what was loaded stays.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.inference.jobs import LoadedEmbedder, LoadedProber
from sae_core.errors import ModelError, OutOfMemoryError
from sae_core.explain.records import EmbeddingModel
from sae_core.records import SAEInfo

FREE_SHARE = 0.5  # of the memory that is free when the worker starts: the budget where none is set


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What an SAE needs, in bytes. SAEs with the same `model_key` share their model."""

    model_key: str
    model_bytes: int
    sae_bytes: int


class Loader(Protocol):
    """Knows how large SAEs are and loads them: `ProberLoader`, or a test's own."""

    def budget(self, device: str | None) -> int | None:
        """The bytes that may be used where none are set; None where that cannot be told."""

    def sizes(self, sae: SAEInfo) -> Sizes: ...

    def load(self, sae: SAEInfo, device: str | None, like: LoadedProber | None) -> LoadedProber:
        """`like` is one with the same model, to be shared."""

    def embedder_sizes(self, model: EmbeddingModel) -> Sizes: ...

    def load_embedder(self, model: EmbeddingModel, device: str | None) -> LoadedEmbedder: ...


class ProberLoader:
    """The real loader; it runs in the worker process, the only place where torch is imported."""

    def budget(self, device: str | None) -> int | None:
        from sae_core.free_memory import free_bytes
        from sae_core.loading import choose_device

        free = free_bytes(choose_device(device))
        return None if free is None else int(FREE_SHARE * free)

    def sizes(self, sae: SAEInfo) -> Sizes:
        from sae_core.loading import load_outline
        from sae_core.sae import WEIGHTS_FILE

        dtype = str(sae.config["dtype"])
        weights = Path(sae.weights_path) / WEIGHTS_FILE
        outline = load_outline(sae.model.model_name, dtype=dtype)
        return Sizes(
            model_key=f"{sae.model.model_name} {sae.model.revision} {dtype}",
            model_bytes=sum(parameter.nbytes for parameter in outline.module.parameters()),
            sae_bytes=weights.stat().st_size if weights.exists() else 0,  # that it is missing, the loading says
        )

    def load(self, sae: SAEInfo, device: str | None, like: LoadedProber | None) -> LoadedProber:
        from sae_core.probe import Prober

        return Prober(sae, device=device, model=like.model if isinstance(like, Prober) else None)

    def embedder_sizes(self, model: EmbeddingModel) -> Sizes:
        from sae_core.loading import load_outline

        outline = load_outline(model.model_name)
        n_bytes = sum(parameter.nbytes for parameter in outline.module.parameters())
        return Sizes(model_key=f"embedding {model.model_name}", model_bytes=n_bytes, sae_bytes=0)

    def load_embedder(self, model: EmbeddingModel, device: str | None) -> LoadedEmbedder:
        from sae_core.embedding import Embedder

        return Embedder(model.model_name, device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    prober: LoadedProber | None = None
    embedder: LoadedEmbedder | None = None
    sizes: Sizes


class Shelf:
    """The loaded SAEs; `app.inference.jobs.Loaded` to the jobs."""

    def __init__(
        self,
        loader: Loader,
        *,
        device: str | None,
        max_tokens: int,
        budget: int | None = None,
        tell: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """`budget` in bytes; `tell` hears what is being loaded, and None when it is."""
        self.max_tokens = max_tokens
        self._loader, self._device, self._tell = loader, device, tell
        self._budget = budget
        self._held: OrderedDict[tuple[str, str, int], _Held] = OrderedDict()

    def prober(self, sae: SAEInfo) -> LoadedProber:
        """The SAE's prober, loaded again when its weights were written anew."""
        key = (sae.slug, sae.weights_path, _modified(Path(sae.weights_path)))
        if key not in self._held:
            for stale in [other for other in self._held if other[0] == sae.slug]:
                del self._held[stale]
            self._tell(f"Loading the model {sae.model.model_name} with the SAE {sae.slug}…")
            try:
                self._held[key] = self._loaded(sae)
            finally:
                self._tell(None)
        self._held.move_to_end(key)
        prober = self._held[key].prober
        assert prober is not None
        return prober

    def embedder(self, model: EmbeddingModel) -> LoadedEmbedder:
        """The model, loaded again if another revision of it was loaded; ModelError if this one is there no more."""
        key = ("", model.model_name, 0)
        held = self._held.get(key)
        embedder = held.embedder if held else None
        if embedder is None or embedder.info != model:
            self._held.pop(key, None)
            self._tell(f"Loading the embedding model {model.model_name}…")
            try:
                sizes = self._loader.embedder_sizes(model)
                self._make_room(f"The embedding model {model.model_name}", sizes)
                embedder = self._loader.load_embedder(model, self._device)
            finally:
                self._tell(None)
            if embedder.info != model:
                raise ModelError(
                    f"The embedding model {model.model_name} has changed since the labels' vectors were made by it; "
                    "make them anew with `saescope label SLUG --embed`."
                )
            self._held[key] = _Held(embedder=embedder, sizes=sizes)
        self._held.move_to_end(key)
        return embedder

    def _loaded(self, sae: SAEInfo) -> _Held:
        sizes = self._loader.sizes(sae)
        self._make_room(f"The model {sae.model.model_name} with the SAE {sae.slug}", sizes)
        like = next((one.prober for one in self._held.values() if one.sizes.model_key == sizes.model_key), None)
        said = f"{_gb(sizes.sae_bytes)}" if like else f"{_gb(sizes.model_bytes + sizes.sae_bytes)}"
        self._tell(f"Loading the model {sae.model.model_name} with the SAE {sae.slug}, {said}…")
        return _Held(prober=self._loader.load(sae, self._device, like), sizes=sizes)

    def _make_room(self, what: str, sizes: Sizes) -> None:
        """Lets go of what was used longest ago until it fits: before loading, so that memory is free by then."""
        if self._budget is None:
            self._budget = self._loader.budget(self._device)
        needed = sizes.model_bytes + sizes.sae_bytes
        if self._budget is None:
            return
        if needed > self._budget:
            raise OutOfMemoryError(
                f"{what} needs {_gb(needed)} of memory, and {_gb(self._budget)} may be used (SAESCOPE_MODEL_MEMORY): "
                "probe it on a larger machine."
            )
        while self._held and self._bytes_with(sizes) > self._budget:
            self._held.popitem(last=False)

    def _bytes_with(self, sizes: Sizes) -> int:
        """Of all that is held and this."""
        all_sizes = [*(one.sizes for one in self._held.values()), sizes]
        models = {one.model_key: one.model_bytes for one in all_sizes}
        return sum(models.values()) + sum(one.sae_bytes for one in all_sizes)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # the loader says what is missing


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.0f} MB"
