"""What routes ask for: the store, the model worker, and parameters that are checked before a route sees them.

A dependency that waits for nothing is `async`: FastAPI would send it to a thread and back, for each request.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, NoReturn, cast

from fastapi import Depends, Path, Query, Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from app.access.identity import identity_of, viewer_of
from app.access.runs import require_seen_run, seen_run, seen_runs
from app.inference import Inference
from app.points import PointsCache
from app.settings import Settings
from sae_core.errors import ForbiddenError, NotFoundError, PromptError
from sae_core.records import SAEInfo
from sae_core.runs import Run, list_runs
from sae_core.store import Store
from sae_core.store_pages import Sort

LARGEST_INDEX = 2**31 - 1
LONGEST_TEXT = 200_000  # characters; the limit in tokens is the model worker's
SURPRISE = "surprise"
ProbeSort = Literal["strength", "sum", "mean", "rarity"]
MAX_PINS, MAX_BESIDE = 8, 3
Width = Literal["short", "medium", "full"]
Part = Literal["label", "statistics", "histogram", "tokens", "examples"]


async def get_store(request: Request) -> Store:
    """The store as whoever asks may see it. Routes have no other."""
    return _store(request)


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store.seen_by(viewer_of(request))


async def get_inference(request: Request) -> Inference:
    """The model worker, which runs nothing for those who may only read."""
    inference: Inference = request.app.state.inference
    return inference if identity_of(request).may("editor") else cast(Inference, ClosedModel())


class ClosedModel:
    """What stands for the model to those who may only read: whatever is asked of it is refused."""

    def warm(self, sae: SAEInfo) -> None:
        """There is nothing to load."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        return _refused


def _refused(*_: object, **__: object) -> NoReturn:
    raise ForbiddenError("Running a text through the model needs the role editor; what is stored can be read.")


async def get_settings(request: Request) -> Settings:
    return _settings(request)


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def get_runs(request: Request) -> list[Run]:
    """The runs that whoever asks may know of."""
    settings = _settings(request)
    runs = list_runs(settings.home)
    if viewer_of(request).sees_everything:
        return runs
    return seen_runs(_store(request), runs, new_saes=settings.visibility)


def as_seen(request: Request, run: Run) -> Run:
    """A run as whoever asks may see it."""
    if viewer_of(request).sees_everything:
        return run
    return seen_run(_store(request), run, new_saes=_settings(request).visibility)


async def check_run(request: Request) -> None:
    """A dependency of every route: a run is there for those for whom its SAE is."""
    run_id = request.path_params.get("run_id")
    if run_id is not None and not viewer_of(request).sees_everything:
        store, settings = _store(request), _settings(request)
        await run_in_threadpool(require_seen_run, store, str(run_id), new_saes=settings.visibility)


async def get_points(request: Request) -> PointsCache:
    points: PointsCache = request.app.state.points
    return points


async def get_version(request: Request) -> str:
    version: str = request.app.version
    return version


def checked_slug(slug: str) -> str:
    """A slug that could exist; one that cannot is unknown, not malformed."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", slug):
        raise NotFoundError("There is no SAE of this name: the start page lists those that are here.")
    return slug


async def _slug(slug: Annotated[str, Path(description="the SAE's name")]) -> str:
    return checked_slug(slug)


def clean_text(text: str) -> str:
    """A prompt that a tokenizer can take."""
    if "\0" in text:
        raise PromptError("The text has a NUL character, so it is not text: remove it and try again.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PromptError("The text has half of a character (a lone surrogate): remove it and try again.")
    return text.replace("\r\n", "\n")  # a browser's form sends line breaks as CR LF


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("should not have a NUL character")
    return value


# What a form leaves empty counts as not given. Limits stand inside the optional: they do not take None.
ShortText = Annotated[str, Field(max_length=200), AfterValidator(_without_nul)]
Name = Annotated[ShortText | None, BeforeValidator(_empty_is_none)]
Given = Annotated[
    Annotated[str, Field(max_length=500), AfterValidator(_without_nul)] | None, BeforeValidator(_empty_is_none)
]
Share = Annotated[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None, BeforeValidator(_empty_is_none)]
Cursor = Annotated[
    Annotated[str, Field(max_length=600), AfterValidator(_without_nul)] | None, BeforeValidator(_empty_is_none)
]
Where = Annotated[Literal["label", "promotes", "fires_on", "examples"] | None, BeforeValidator(_empty_is_none)]
Index = Annotated[Annotated[int, Field(ge=0, le=LARGEST_INDEX)] | None, BeforeValidator(_empty_is_none)]

# What colours a probed text: a feature, or how unexpected the model found each token.
Colour = Annotated[
    Annotated[int, Field(ge=0, le=LARGEST_INDEX)] | Literal["surprise"] | None, BeforeValidator(_empty_is_none)
]


class CorpusQuery(BaseModel):
    """Which of an SAE's indexes; the newest when no corpus is named."""

    model_config = ConfigDict(frozen=True)
    corpus: Name = Field(default=None, description="name of the corpus; default the newest index")


EMBEDDED_PARTS: list[Part] = ["label", "statistics", "examples"]


class FeatureListQuery(CorpusQuery):
    """Which features, in which order, from where."""

    sort: Sort = Field(default="-density", description="a minus sign puts the largest first")
    q: Name = Field(
        default=None,
        description='words, all of which must stand somewhere; the ends of words may be missing; "in quotes" as it is',
    )
    within: Where = Field(default=None, description="where to look; default everywhere")
    min_density: Share = Field(default=None, description="least density, a share between 0 and 1")
    max_density: Share = Field(default=None, description="largest density, a share between 0 and 1")
    min_confidence: Share = Field(default=None, description="least confidence of the automatic label")
    alive: bool = Field(default=True, description="leave out features that never fired")
    after: Cursor = Field(default=None, description="cursor: `next` of the page before")
    limit: int = Field(default=50, ge=1, le=200, description="features per page")


class FeaturePageQuery(FeatureListQuery):
    """The same, and how the page shows them."""

    view: Literal["examples", "table"] = "examples"

    def selection(self) -> dict[str, Any]:
        """What the store is asked."""
        return self.model_dump(exclude={"view"})


def _split(value: object) -> object:
    """`parts=a,b` says the same as `parts=a&parts=b`, which is what a form sends."""
    values = value if isinstance(value, list) else [value]
    return [part for one in values for part in str(one).split(",") if part]


class FeatureQuery(CorpusQuery):
    """How a feature page shows its examples; and where it is embedded in another page, what is shown of it."""

    width: Width = "short"
    breaks: bool = False
    tested: Annotated[str | None, Field(max_length=40)] = Field(
        default=None, description="show the texts of a score: kind of label and method, as in model-detection"
    )
    embed: bool = False
    parts: Annotated[list[Part], BeforeValidator(_split)] = Field(default=[], description="default: EMBEDDED_PARTS")
    examples: int = Field(default=8, ge=1, le=20)
    theme: Annotated[Literal["light", "dark"] | None, BeforeValidator(_empty_is_none)] = None

    @property
    def shown_parts(self) -> list[Part]:
        return self.parts or EMBEDDED_PARTS


Pins = Annotated[
    list[Annotated[int, Field(ge=0, le=LARGEST_INDEX)]], Field(max_length=MAX_PINS), BeforeValidator(_split)
]


Session = Annotated[
    str | None, Field(max_length=64, description="any name: of texts that share it, only what changed is run again")
]


def shown_pins(pins: list[int], colour: int | str | None) -> tuple[int, ...]:
    """The pinned features and the one that colours the text, each once."""
    return tuple(dict.fromkeys([*pins, *([colour] if isinstance(colour, int) else [])]))


class ProbeQuery(CorpusQuery):
    """A text and what is picked out in it: all of a probe page's state."""

    text: str = Field(default="", max_length=LONGEST_TEXT)
    feature: Colour = Field(default=None, description='colour the text by this feature, or by "surprise"')
    token: Index = Field(default=None, description="show this token's features and what the model expects next")
    sort: ProbeSort = "strength"
    pin: Pins = Field(default=[], description="features whose traces are compared")
    max_density: Share = Field(default=None, description="leave out features that are active more often than this")
    special: bool = Field(default=False, description="show features on special tokens (BOS and the like) too")
    beside: Annotated[list[str], Field(max_length=MAX_BESIDE), BeforeValidator(_split)] = Field(
        default=[], description="further SAEs of the same model"
    )

    @property
    def shown_pins(self) -> tuple[int, ...]:
        """The features that must be in the answer wherever they rank."""
        return shown_pins(self.pin, self.feature)

    def state(self) -> dict[str, Any]:
        """All that was chosen, but the text."""
        return self.model_dump(mode="json", exclude={"text"}, exclude_defaults=True)


StoreDep = Annotated[Store, Depends(get_store)]
InferenceDep = Annotated[Inference, Depends(get_inference)]
RunsDep = Annotated[list[Run], Depends(get_runs)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
PointsDep = Annotated[PointsCache, Depends(get_points)]
VersionDep = Annotated[str, Depends(get_version)]
Slug = Annotated[str, Depends(_slug)]
FeatureIndex = Annotated[int, Path(ge=0, le=LARGEST_INDEX)]
CorpusParams = Annotated[CorpusQuery, Query()]
FeatureListParams = Annotated[FeatureListQuery, Query()]
FeaturePageParams = Annotated[FeaturePageQuery, Query()]
FeatureParams = Annotated[FeatureQuery, Query()]
ProbeParams = Annotated[ProbeQuery, Query()]
