"""How much one pass may remove."""

FREE_REMOVALS = 3
"""So many are always allowed where a share is the limit."""


def removal_limit(text: str, owned: int) -> int:
    """How many of `owned` objects one pass may remove. Raises ValueError where `text` is no limit."""
    if text == "all":
        return owned
    if text.endswith("%"):
        share = int(text[:-1])
        if not 0 <= share <= 100:
            raise ValueError(f"{text} is no share")
        return max(FREE_REMOVALS, owned * share // 100)
    number = int(text)
    if number < 0:
        raise ValueError(f"{text} is no number of removals")
    return number
