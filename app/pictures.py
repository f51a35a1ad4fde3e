"""A picture of a feature, a list or a shared probe, for chats that show one where a link is pasted: names, numbers,
coloured text.

Drawn with Pillow, in the light theme's colours, at the size that chats expect. Each character is drawn in the first of
the machine's fonts that has it; Pillow's own, which has Latin letters, is always there.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

from app.examples import STEPS, TokenView, one_line
from app.list_views import item_name
from app.numbers import number, percent
from app.probe_views import ProbeView
from app.rendering import STATIC, visible_token
from sae_core.records import Example, Feature, FeatureList, SharedProbe

WIDTH, HEIGHT = 1200, 630
MARGIN = 64
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "segoeui.ttf", "Arial Unicode.ttf",
    "Arial.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "seguisym.ttf",
)  # fmt: skip
NOWHERE = "\U0010ffff"  # no font has it, so it looks as what a font lacks
BEFORE, AFTER = 150, 260  # characters of the example around its peak
LIST_BEFORE, LIST_AFTER = 24, 44
LISTED = 4
PROMOTED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some text in one colour, perhaps on another. `step` of the activation scale; the peak is underlined."""

    text: str
    step: int = 0
    is_peak: bool = False


def feature_picture(slug: str, feature: Feature, example: Example | None, *, has_bos: bool) -> bytes:
    """A PNG: what the feature is called, its numbers, its top example, the tokens that it promotes."""
    pen = Pen()
    pen.line(f"{slug}  #{feature.feature_index}", size=28, colour="muted")
    pen.text(
        [Piece(text=feature.label.text if feature.label else f"Feature {feature.feature_index}")], size=46, lines=2
    )
    if example is None:
        pen.line("dead: active on no token of the corpus", size=28, colour="muted")
        return pen.png()
    pen.line(f"density {percent(feature.density)}   max {number(feature.max_activation)}", size=28, colour="muted")
    pen.rule()
    line = one_line(example, scale=feature.max_activation, has_bos=has_bos, before=BEFORE, after=AFTER)
    pen.text(_pieces((*line.before, *line.after)), size=32, lines=6)
    promoted = "  ".join(visible_token(token.token) for token in feature.promoted_tokens[:PROMOTED])
    pen.foot(f"promotes  {promoted}" if promoted else "")
    return pen.png()


def list_picture(found: FeatureList) -> bytes:
    """A PNG: the list's title, and its first features with the middle of their top examples."""
    pen = Pen()
    n = len(found.items)
    pen.line(f"a list of {n} feature{'' if n == 1 else 's'}", size=28, colour="muted")
    pen.text([Piece(text=found.title)], size=46, lines=2)
    pen.rule()
    for item in found.items[:LISTED]:
        pen.line(item_name(item), size=24, colour="muted")
        if item.feature and item.examples and item.measured_on:
            line = one_line(
                item.examples[0], scale=item.feature.max_activation, has_bos=item.measured_on.prepend_bos,
                before=LIST_BEFORE, after=LIST_AFTER,
            )  # fmt: skip
            pen.text(_pieces((*line.before, *line.after)), size=26, lines=1)
    pen.foot(f"and {n - LISTED} more" if n > LISTED else "")
    return pen.png()


def probe_picture(found: SharedProbe, view: ProbeView | None) -> bytes:
    """A PNG: a shared text, coloured as its page colours it; as plain text where no model could be asked."""
    pen = Pen()
    pen.line(found.slug, size=28, colour="muted")
    pen.text([Piece(text=coloured_by(view) if view else "A text to probe")], size=40, lines=2)
    pen.rule()
    pen.text(_pieces(view.text.tokens) if view else [Piece(text=found.text)], size=34, lines=7)
    pen.foot(f"shared by {found.author}")
    return pen.png()


def coloured_by(view: ProbeView) -> str:
    """What the colours of a probed text mean."""
    if view.by_surprise:
        return "How unexpected each token was"
    feature = view.coloured_by
    if feature is None:
        return "Each token's strongest feature"
    return feature.label or f"Feature {feature.feature_index}"


def _pieces(tokens: Sequence[TokenView]) -> list[Piece]:
    return [Piece(text=token.text, step=token.step, is_peak=token.is_peak) for token in tokens]


class Pen:
    """Writes from the top down, and leaves out what does not fit."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH, HEIGHT), _colour("paper"))
        self._draw = ImageDraw.Draw(self._image)
        self._y = 48.0

    def line(self, text: str, *, size: int, colour: str = "ink") -> None:
        """One line, cut where the picture ends."""
        self._write([Piece(text=text)], size=size, lines=1, colour=colour)

    def text(self, pieces: Sequence[Piece], *, size: int, lines: int) -> None:
        self._write(pieces, size=size, lines=lines, colour="ink")

    def rule(self) -> None:
        self._draw.line((MARGIN, self._y + 8, WIDTH - MARGIN, self._y + 8), fill=_colour("line"), width=2)
        self._y += 24

    def foot(self, text: str) -> None:
        self._y = HEIGHT - 76.0
        self.line(text, size=26, colour="muted")

    def png(self) -> bytes:
        file = io.BytesIO()
        self._image.save(file, "PNG")
        return file.getvalue()

    def _write(self, pieces: Sequence[Piece], *, size: int, lines: int, colour: str) -> None:
        x, line, high = float(MARGIN), 1, size * 1.45
        for piece in pieces:
            for part in re.findall(r"\s+|\S+", piece.text):
                for run, font in _runs(part, size=size):
                    wide = font.getlength(run)
                    if x + wide > WIDTH - MARGIN and x > MARGIN and not run.isspace():
                        if line == lines or self._y + 2 * high > HEIGHT - 70:
                            self._draw.text((x, self._y), "…", font=_fonts(size)[0], fill=_colour("muted"))
                            self._y += high
                            return
                        x, line, self._y = MARGIN, line + 1, self._y + high
                    self._mark(piece, x, wide, high)
                    base = self._y + size * 1.05
                    self._draw.text((x, base), run, font=font, fill=_colour(colour), anchor="ls")
                    x += wide
        self._y += high

    def _mark(self, piece: Piece, x: float, wide: float, high: float) -> None:
        if piece.step:
            box = (x, self._y - 0.02 * high, x + wide, self._y + 0.93 * high)
            self._draw.rectangle(box, fill=_step_colour(piece.step))
        if piece.is_peak:
            under = self._y + 0.93 * high
            self._draw.line((x, under, x + wide, under), fill=_colour("ink"), width=3)


def _runs(text: str, *, size: int) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    """The text in runs of one font each; a run wider than the picture is cut into letters."""
    for index, letters in groupby(text, key=_font_of):
        run, font = "".join(letters), _fonts(size)[index]
        if font.getlength(run) <= WIDTH - 2 * MARGIN:
            yield run, font
        else:
            yield from ((letter, font) for letter in run)


@lru_cache(maxsize=16)
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    found = []
    for name in FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    own = ImageFont.load_default(size)
    assert isinstance(own, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
    return (*found, own)


@lru_cache(maxsize=1 << 16)
def _font_of(letter: str) -> int:
    """The number of the first font that has this character; of the first of all where none has."""
    if letter.isspace():
        return 0
    for index, font in enumerate(_fonts(20)):
        if bytes(font.getmask(letter)) != bytes(font.getmask(NOWHERE)):
            return index
    return 0


@lru_cache(maxsize=64)
def _colour(name: str) -> tuple[int, int, int]:
    """A colour of the stylesheet's light theme."""
    found = re.search(rf"--{name}: light-dark\(#(\w{{6}})", _stylesheet())
    assert found is not None, name
    red, green, blue = bytes.fromhex(found[1])
    return red, green, blue


@lru_cache(maxsize=STEPS)
def _step_colour(step: int) -> tuple[int, int, int]:
    found = re.search(rf"\.a{step} {{ --p: (\d+)%", _stylesheet())
    assert found is not None, step
    share = int(found[1]) / 100
    red, green, blue = (
        round(share * act + (1 - share) * paper)
        for act, paper in zip(_colour("act"), _colour("paper"), strict=True)
    )  # fmt: skip
    return red, green, blue


@lru_cache(maxsize=1)
def _stylesheet() -> str:
    return (STATIC / "style.css").read_text(encoding="utf-8")
