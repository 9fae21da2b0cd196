"""Rounding of counts."""


def ceil_to(value: int, multiple: int) -> int:
    """Round a value up to a multiple."""
    return -(-value // multiple) * multiple
