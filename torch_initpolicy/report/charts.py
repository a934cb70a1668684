"""Charts over the depth of a model, as SVG text. No script is needed to see them."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch_initpolicy.signal.profiles import Profile

WIDTH, HEIGHT = 960, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 30, 34


@dataclass(frozen=True, slots=True)
class Mark:
    """Where something is to be pointed out.

    Attributes:
        weight: Name of the weight.
        said: What to write there.
    """

    weight: str
    said: str


def chart(title: str, profiles: Mapping[str, Profile], *, mark: Mark | None = None) -> str:
    """Draw profiles over one another, on a logarithmic scale.

    Args:
        title: What is drawn, for whoever cannot see it.
        profiles: The profiles, by what they are called.
        mark: Where to draw a line, and what to write at it: here it goes wrong.

    Returns:
        An `<svg>` element in a frame that scrolls where the page is narrow; the lines have the
        classes `line-0`, `line-1`, and so on.
    """
    heights = [h for profile in profiles.values() for h in profile.heights if h is not None]
    if not heights:
        return f"<p>{html.escape(title)}: nothing was measured.</p>"
    low, high = _decades(heights)
    count = max(len(profile.heights) for profile in profiles.values())
    names = next(iter(profiles.values())).names
    known = mark is not None and mark.weight in names
    marks = [_mark(mark.said, names.index(mark.weight), count)] if mark and known else []
    parts = [
        *_grid(low, high),
        *marks,
        *(_line(i, p, count, low, high) for i, p in enumerate(profiles.values())),
    ]
    caption = html.escape(f"{title}, for {', '.join(profiles)}")
    return (
        f'<div class="plot" tabindex="0" role="region" aria-label="{html.escape(title)}">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{caption}">'
        f"{''.join(parts)}</svg></div>"
    )


def _decades(heights: Sequence[float]) -> tuple[int, int]:
    """Return powers of ten around all heights, at least two decades apart."""
    low, high = math.floor(math.log10(min(heights))), math.ceil(math.log10(max(heights)))
    return (low, high) if high - low > 1 else (low - 1, high + 1)


def _x(place: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (place / max(count - 1, 1))


def _y(height: float, low: int, high: int) -> float:
    share = (math.log10(height) - low) / (high - low)
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def _grid(low: int, high: int) -> Iterator[str]:
    step = max(1, (high - low) // 6)
    for power in range(low, high + 1, step):
        y = _y(10.0**power, low, high)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>'
    yield (
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        "weights, in order of execution</text>"
    )


def _mark(said: str, place: int, count: int) -> str:
    """Draw where it goes wrong, the words above it on the side that has room."""
    x = _x(place, count)
    side, anchor = (6, "start") if place < count / 2 else (-6, "end")
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 22}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="marked" x="{x + side:.1f}" y="{TOP - 10}" text-anchor="{anchor}">'
        f"{html.escape(said)}</text>"
    )


def _line(index: int, profile: Profile, count: int, low: int, high: int) -> str:
    """Draw one profile: a line and a dot at each weight, which tells its name and number."""
    dots = [
        (_x(place, count), _y(height, low, high), name, height)
        for place, (name, height) in enumerate(zip(profile.names, profile.heights, strict=True))
        if height is not None
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in dots)
    circles = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{html.escape(name)}: {height:.3g}'
        "</title></circle>"
        for x, y, name, height in dots
    )
    return f'<g class="line-{index}"><polyline points="{path}"/>{circles}</g>'
