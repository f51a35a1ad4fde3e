"""Features as one HTML file that opens anywhere: styles inside, no script, no request. By `saescope export` and lists.

The file is made piece by piece, a feature at a time, so that hundreds of them need little memory.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from app.charts import BarChart, activation_chart
from app.examples import ExampleGroup, example_groups
from app.list_views import item_name
from app.rendering import STATIC, make_environment, saescope_version
from sae_core.errors import ConfigError, InputError, NotFoundError
from sae_core.records import FeatureDetail, FeatureList, IndexInfo, ListItem, SAEInfo
from sae_core.store import Store

MAX_FEATURES = 300
EXPRESSIONS_A_PIECE = 5000  # of the template: about 100 kB; a piece for each would take a server minutes to send
REACHES = ("short", "medium")  # the rest of a context is left out: it would make the file three times as large
TERMS_USED = (
    "activation", "around", "band", "coactive", "confidence", "copies", "dead", "density", "encoder_decoder",
    "fires_on", "max", "mean", "nearest", "promotes", "random_firings", "suppresses",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A feature that is to be in the file; `item` where it comes from a list."""

    slug: str
    feature_index: int
    corpus: str | None
    name: str
    item: ListItem | None = None

    @property
    def anchor(self) -> str:
        return f"item-{self.item.item_id}" if self.item else f"feature-{self.feature_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A feature of the file with all that is printed of it; `problem` says why there is nothing."""

    entry: Entry
    problem: str | None = None
    sae: SAEInfo | None = None
    index: IndexInfo | None = None
    detail: FeatureDetail | None = None
    chart: BarChart | None = None
    groups: tuple[ExampleGroup, ...] = ()


def feature_numbers(text: str, *, what: str = "--features", most: int = MAX_FEATURES) -> list[int]:
    """ "1,5,9-12" as numbers, in that order, each once."""
    numbers: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
        if match is None:
            raise InputError(f"{what} is {text!r}; give numbers and ranges, such as 1,5,9-12.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"{what} has the range {part.strip()}, which ends before it begins; turn it round.")
        numbers.update(dict.fromkeys(range(first, min(last, first + most) + 1)))
        if len(numbers) > most:
            raise InputError(f"{what} names more than {most:,} features, which is too many; name fewer.")
    return list(numbers)


def number_ranges(numbers: Iterable[int]) -> str:
    """The other way round, ascending."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def exported_file(
    store: Store, slug: str | None, *, features: str | None, list_id: str | None, corpus: str | None
) -> tuple[str, Iterator[str]]:
    """What `saescope export` asks for: the file's name, and the file in pieces. All that is wrong is said now."""
    if (list_id is None) == (features is None):
        raise ConfigError("Name the features (SLUG --features 1,5,9-12) or a list (--list ID), one of the two.")
    if list_id is not None:
        if slug is not None or corpus is not None:
            raise ConfigError(
                "A list says itself of which SAE and corpus its features are; leave out SLUG and --corpus."
            )
        found = store.feature_list(list_id)
        return f"list-{found.list_id}.html", exported_list(store, found, version=saescope_version())
    if slug is None:
        raise ConfigError("--features are features of which SAE? Write: saescope export SLUG --features 1,5,9-12.")
    numbers = feature_numbers(features or "")
    return f"{slug}-features.html", exported_features(
        store, slug, numbers, corpus=corpus, version=saescope_version()
    )  # fmt: skip


def write(pieces: Iterator[str], path: Path) -> None:
    """The file as a whole or not at all: an older one stays until this one is there."""
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"{path} is not a file in a folder that is there; name another --output.")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); make room, or name another --output."
        ) from error
    finally:
        if unfinished.exists():
            unfinished.unlink()


def exported_features(
    store: Store, slug: str, numbers: Sequence[int], *, corpus: str | None, version: str
) -> Iterator[str]:
    """The file in pieces. Raises NotFoundError before the first if a feature is not there."""
    known = store.feature_stats(slug, numbers, corpus=corpus)
    for number in numbers:
        if number not in known:
            store.feature(slug, number, corpus=corpus)  # says which there are
    names = {number: label.text for number, feature in known.items() if (label := feature.label)}
    entries = [
        Entry(slug=slug, feature_index=n, corpus=corpus, name=names.get(n, f"Feature {n}")) for n in numbers
    ]  # fmt: skip
    title = f"{slug}: {entries[0].name}" if len(entries) == 1 else f"{slug}: {len(entries)} features"
    return _pieces(store, entries, version=version, title=title, found=None)


def exported_list(store: Store, found: FeatureList, *, version: str) -> Iterator[str]:
    """The file of a list, with its notes, in pieces."""
    entries = [
        Entry(slug=i.slug, feature_index=i.feature_index, corpus=i.corpus, name=item_name(i), item=i)
        for i in found.items
    ]
    return _pieces(store, entries, version=version, title=found.title, found=found)


def _pieces(
    store: Store, entries: Sequence[Entry], *, version: str, title: str, found: FeatureList | None
) -> Iterator[str]:
    environment = make_environment(version=version, glossary="")
    anchors = {(entry.slug, entry.feature_index): entry.anchor for entry in entries}
    pieces = environment.get_template("export.html").stream(
        title=title, found=found, entries=entries, anchors=anchors, sections=_sections(store, entries),
        styles=Markup((STATIC / "style.css").read_text(encoding="utf-8")), terms_used=TERMS_USED,
    )  # fmt: skip
    pieces.enable_buffering(EXPRESSIONS_A_PIECE)
    return pieces


def _sections(store: Store, entries: Sequence[Entry]) -> Iterator[Section]:
    saes: dict[str, SAEInfo] = {}
    for entry in entries:
        if entry.item and entry.item.problem:
            yield Section(entry=entry, problem=entry.item.problem)
            continue
        try:
            yield _section(store, entry, saes=saes)
        except NotFoundError as error:  # deleted while the file was being made
            yield Section(entry=entry, problem=str(error))


def _section(store: Store, entry: Entry, *, saes: dict[str, SAEInfo]) -> Section:
    if entry.slug not in saes:
        saes[entry.slug] = store.sae(entry.slug).sae
    index = store.index(entry.slug, corpus=entry.corpus)
    detail = store.feature(entry.slug, entry.feature_index, corpus=entry.corpus)
    groups = example_groups(detail.feature, detail.examples, has_bos=index.corpus.prepend_bos)
    return Section(
        entry=entry,
        sae=saes[entry.slug],
        index=index,
        detail=detail,
        chart=activation_chart(detail.feature),
        groups=tuple(map(_shortened, groups)),
    )


def _shortened(group: ExampleGroup) -> ExampleGroup:
    examples = (
        replace(
            example,
            runs=tuple(run for run in example.runs if run.reach in REACHES),
            cut_before=_cut(example.cut_before, example.runs[0].reach),
            cut_after=_cut(example.cut_after, example.runs[-1].reach),
        )
        for example in group.examples
    )
    return replace(group, examples=tuple(examples))


def _cut(cut: str, reach: str) -> str:
    """At which widths there is a "…": at both where text that is nowhere in the file is left out."""
    return " ".join(REACHES) if reach not in REACHES else cut
