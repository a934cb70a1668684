"""Names for cases that read well and are the same in every process."""


def readable(item: object) -> str:
    """Name a case: a function by its name, a set in order, anything else as it prints."""
    if isinstance(item, (set, frozenset)):
        return "+".join(sorted(map(str, item)))
    return str(getattr(item, "__name__", item))
