"""Results as notebooks show them: a picture where there is one, and the text as it is printed."""

import html

LARGEST_TEXT = 150_000
"""Characters of text that are shown; what is longer ends with a line that says so."""


def framed(picture: str, text: str) -> str:
    """Return a fragment of HTML: an `<svg>` element or nothing, and what `print` writes.

    It needs no network and has the colours of the page around it.

    Examples:
        >>> framed("", "a < b")
        '<div><pre style="white-space: pre; overflow-x: auto; color: inherit">a &lt; b</pre></div>'
    """
    if len(text) > LARGEST_TEXT:
        text = f"{text[:LARGEST_TEXT]}\n... {len(text) - LARGEST_TEXT} more characters: print it"
    style = "white-space: pre; overflow-x: auto; color: inherit"
    return f'<div>{picture}<pre style="{style}">{html.escape(text, quote=False)}</pre></div>'
