"""Published SAE formats: one module each, which tells its files from others by what they hold, reads and writes them.

    Source      finds the weights file and the settings beside it, and reads both without running anything  (`source`)
    recognised  the format of a source: by tensor names and shapes, never by file names alone
    read        a `ForeignSAE`: an SAE of ours that computes what it computed there                        (`foreign`)
    write       the same SAE as another tool's files

A format is a module with `recognises(source)` and `read(source)`, and `write(outgoing, folder)` where saescope writes
it; here it gets its name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_core.errors import ConfigError, WeightsError
from sae_core.formats import (
    dictionary_learning,
    gemma_scope,
    goodfire,
    llama_scope,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)
from sae_core.formats.foreign import ForeignSAE
from sae_core.formats.source import Source

if TYPE_CHECKING:
    from sae_core.formats.exporting import Outgoing

_SHOWN = 8
_LONGEST = 160  # characters of another's error


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of SAE weights, by its name on the command line."""

    name: str
    title: str  # as people call it
    recognises: Callable[[Source], bool]
    read: Callable[..., ForeignSAE]
    write: "Callable[[Outgoing, Path], tuple[str, ...]] | None" = None


def _format(name: str, title: str, module: Any) -> Format:
    return Format(
        name=name,
        title=title,
        recognises=module.recognises,
        read=module.read,
        write=getattr(module, "write", None),
    )


# In the order in which they are asked: Llama Scope's tensors are also those of a class of dictionary_learning, and only
# its settings tell.
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        _format("saelens", "SAELens", saelens),
        _format("sparsify", "sparsify", sparsify),
        _format("llama_scope", "Llama Scope", llama_scope),
        _format("dictionary_learning", "dictionary_learning", dictionary_learning),
        _format("gemma_scope", "Gemma Scope", gemma_scope),
        _format("openai", "OpenAI's sparse_autoencoder", openai),
        _format("goodfire", "Goodfire", goodfire),
        _format("qwen_scope", "Qwen Scope", qwen_scope),
    )
}


def read_source(source: Source, name: str | None = None) -> tuple[Format, ForeignSAE]:
    """The SAE of these files and their format. Raises WeightsError, and ConfigError for an unknown format."""
    format = recognised(source, name)
    try:
        return format, format.read(source)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        said = f"{type(error).__name__}: {error}"[:_LONGEST]
        raise WeightsError(
            f"{source.weights} and the settings beside it do not fit what {format.title} writes ({said}); fetch both "
            "again, or give another --format."
        ) from error


def recognised(source: Source, name: str | None = None) -> Format:
    """The format of these files; the one that `name` names, if it is given. Raises WeightsError and ConfigError."""
    if name is not None:
        if name not in FORMATS:
            raise ConfigError(f"Format {name!r} is not known: choose one of {', '.join(FORMATS)}.")
        return FORMATS[name]
    for format in FORMATS.values():
        if format.recognises(source):
            return format
    held = ", ".join(sorted(source.shapes)[:_SHOWN]) or "no tensors"
    said = f"settings in {source.config_file.name}" if source.config_file else "no settings beside it"
    raise WeightsError(
        f"{source.weights} is none of the formats {', '.join(FORMATS)}: it holds {held}, with {said}. "
        "Give --format if you know it is one of them."
    )
