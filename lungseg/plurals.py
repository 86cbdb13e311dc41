"""Numbers with their nouns, for messages."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, as in `1 image` and `2 images`."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
