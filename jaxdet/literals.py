"""Values that people write as text, on the command line and in metadata of weights."""

import ast
from typing import Any


def read_literal(text: str) -> Any:
    """The Python value that a text is, such as (1, 2); a text that is none stays as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
