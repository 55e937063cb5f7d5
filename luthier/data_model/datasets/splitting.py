"""Which rows are held out and which are sampled; the same for the same seed.

What is chosen from are units: rows that stand alone, by their number from 0, or groups of rows that
continue one another, each a list of such numbers.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Sequence
from typing import TypeAlias

from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.errors import TrainingDataError

Units: TypeAlias = Sequence[int] | Sequence[list[int]]
#: A sample never has fewer units than this, if there are as many.
_MIN_SAMPLED = 10


def hold_out(units: Units, options: DatasetOptions, *, name: str) -> tuple[Units, Units]:
    """Part units into those to learn from and those to validate with.

    Args:
        units: All of them.
        options: Share and seed.
        name: Of the data, for the message.

    Returns:
        Units to learn and units to validate with, each in their order; none of the latter for a
        share of 0.

    Raises:
        TrainingDataError: If there are too few to hold any out.
    """
    if not options.validation_size:
        return units, []
    if len(units) < 2:
        what = "rows" if isinstance(units, range) else "groups of chained rows"
        raise TrainingDataError(
            f"{name!r} has {len(units)} {what}: none can be held out; give 'validation_size' 0, or "
            "rows to validate with"
        )
    num_held_out = min(math.ceil(len(units) * options.validation_size), len(units) - 1)
    generator = random.Random(f"split, seed {options.split_seed}")
    chosen = set(generator.sample(range(len(units)), num_held_out))
    if isinstance(units, range):
        return array("q", (row for row in units if row not in chosen)), sorted(chosen)
    kept = [unit for index, unit in enumerate(units) if index not in chosen]
    held_out = [unit for index, unit in enumerate(units) if index in chosen]
    return kept, held_out  # type: ignore[return-value]  # units are all rows or all groups


def sample(units: Units, part: str, options: DatasetOptions) -> Units:
    """A share of units, if the options ask for one of this part.

    Args:
        units: All of them.
        part: ``Train`` or ``Validation``.
        options: Share, parts and seed.

    Returns:
        Some units in their order, or all.
    """
    if options.data_sample == 1 or part not in options.data_sample_choice:
        return units
    num_kept = min(len(units), max(_MIN_SAMPLED, int(len(units) * options.data_sample)))
    generator = random.Random(f"sample of {part}, seed {options.split_seed}")
    chosen = sorted(generator.sample(range(len(units)), num_kept))
    return [units[index] for index in chosen]  # type: ignore[return-value]  # as above
