"""Names of categories as tables show them: two of one name are told apart by their ids."""

from collections import Counter
from collections.abc import Mapping


def distinct_names(names: Mapping[int, str]) -> dict[int, str]:
    """The same names by id, in the same order; of those that stand twice, each with its id behind it.

    >>> distinct_names({1: "cell", 2: "cell", 3: "cat"})
    {1: 'cell (1)', 2: 'cell (2)', 3: 'cat'}
    """
    counts = Counter(names.values())
    if all(count == 1 for count in counts.values()):
        return dict(names)
    told_apart = {key: f"{name} ({key})" if counts[name] > 1 else name for key, name in names.items()}
    return distinct_names(told_apart)  # a third one may be called so already
