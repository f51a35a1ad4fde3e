"""Parts of a map: written in an address, drawn as squares, asked which features lie in them.

An area is "x,y,x,y,…" in the map's own numbers, y upwards: four numbers are two corners of a box, more the corners of
any outline in their order, as a lasso draws it. Its left and lower edges belong to it, the others to what lies beyond;
so it goes to 65,536, one further than places do.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sae_core.errors import InputError
from sae_core.records import MAP_SIDE

MOST_CORNERS = 200
FAR = MAP_SIDE + 1
CELLS, SQUARES = 48, 8  # each way: what is drawn without a script, and what can be chosen without a pointer

Place = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCell:
    """A part of the drawn map, from the left and from the top; `level` 1..5 by the logarithm of its count."""

    x: int
    y: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """A part of the map that can be chosen, by column and row from the top; `href` shows its features."""

    x: int
    y: int
    n_features: int
    href: str


def corners(area: str) -> list[Place]:
    """The outline of an area. Raises InputError if it is not one."""
    parts = area.split(",")
    if not all(re.fullmatch(r"\d{1,5}", part, re.ASCII) and int(part) <= FAR for part in parts):
        raise InputError(f"An area is numbers from 0 to {FAR} with commas between them; draw it again on the map.")
    numbers = [int(part) for part in parts]
    if len(numbers) == 4:
        x1, y1, x2, y2 = numbers
        return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    if len(numbers) < 6 or len(numbers) % 2 or len(numbers) > 2 * MOST_CORNERS:
        raise InputError(
            f"An area has two opposite corners, or 3 to {MOST_CORNERS} in a row, each as x,y; draw it again on the map."
        )
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def inside(outline: list[Place], places: Iterable[tuple[int, Place]]) -> list[int]:
    """The numbers of the places within the outline, which may cross itself."""
    left, right = min(x for x, _ in outline), max(x for x, _ in outline)
    low, high = min(y for _, y in outline), max(y for _, y in outline)
    edges = [
        (x1, y1, x2, y2) for (x1, y1), (x2, y2) in zip(outline, outline[1:] + outline[:1], strict=True) if y1 != y2
    ]
    found = []
    for number, (x, y) in places:
        if not (left <= x <= right and low <= y <= high):
            continue
        # How often a line to the right crosses the outline: an odd number of times from within.
        is_in = False
        for x1, y1, x2, y2 in edges:
            if (y1 <= y) != (y2 <= y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
                is_in = not is_in
        if is_in:
            found.append(number)
    return found


def cells(places: Iterable[Place]) -> list[MapCell]:
    """How many features lie where."""
    counts = _counted(places, CELLS)
    most = math.log1p(max(counts.values(), default=1))
    return [
        MapCell(x=x, y=CELLS - 1 - y, level=max(1, math.ceil(5 * math.log1p(n) / most)))
        for (x, y), n in sorted(counts.items())
    ]


def squares(places: Iterable[Place], *, address: Callable[[str], str]) -> list[list[Square]]:
    """The map in rows of squares, from the top; `address` of an area."""
    counts = _counted(places, SQUARES)
    return [
        [
            Square(x=x, y=SQUARES - 1 - y, n_features=counts.get((x, y), 0), href=address(_box(x, y)))
            for x in range(SQUARES)
        ]
        for y in reversed(range(SQUARES))
    ]


def outline_points(outline: Iterable[Place]) -> str:
    """An outline as SVG's points, over the drawn cells."""
    return " ".join(f"{x * CELLS / FAR:.2f},{CELLS - y * CELLS / FAR:.2f}" for x, y in outline)


def _counted(places: Iterable[Place], parts: int) -> dict[Place, int]:
    counts: dict[Place, int] = {}
    for x, y in places:
        part = (x * parts // FAR, y * parts // FAR)
        counts[part] = counts.get(part, 0) + 1
    return counts


def _box(x: int, y: int) -> str:
    side = FAR // SQUARES
    return f"{x * side},{y * side},{(x + 1) * side},{(y + 1) * side}"
