"""Text that can be encoded. Python's strings can hold half of a surrogate pair, and a name of a file that is not UTF-8
becomes such a string: no encoder takes it. Pure.
"""


def well_formed(text: str) -> str:
    """The text with what UTF-8 cannot encode as an escape so that it can be logged and journalled."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_of(value: object) -> str:
    """The value's own text, well-formed. Total: a value whose `__str__` raises is told by its type."""
    try:
        return well_formed(str(value))
    except Exception:  # noqa: BLE001 - it may be an object of a plugin's, which can do anything
        return f"<{type(value).__name__} without a text>"
