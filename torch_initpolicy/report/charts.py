"""Charts over the depth of a model, as SVG text. No script is needed to see them."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence

from torch_initpolicy.checks.profiles import Profile

WIDTH, HEIGHT = 960, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 34


def chart(title: str, profiles: Mapping[str, Profile], *, marked: str | None = None) -> str:
    """Draw profiles over one another, on a logarithmic scale.

    Args:
        title: What is drawn, for whoever cannot see it.
        profiles: The profiles, by what they are called.
        marked: Name of a weight at which to draw a line: here it goes wrong.

    Returns:
        An `<svg>` element; the lines have the classes `line-0`, `line-1`, and so on.
    """
    heights = [h for profile in profiles.values() for h in profile.heights if h is not None]
    if not heights:
        return f"<p>{html.escape(title)}: nothing was measured.</p>"
    low, high = _decades(heights)
    count = max(len(profile.heights) for profile in profiles.values())
    names = next(iter(profiles.values())).names
    parts = [
        *_grid(low, high),
        *(_mark(names.index(marked), count) for _ in [0] if marked in names),
        *(_line(i, p, count, low, high) for i, p in enumerate(profiles.values())),
    ]
    caption = html.escape(f"{title}, for {', '.join(profiles)}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{caption}">'
        f"{''.join(parts)}</svg>"
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


def _mark(place: int, count: int) -> str:
    x = _x(place, count)
    return f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'


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
