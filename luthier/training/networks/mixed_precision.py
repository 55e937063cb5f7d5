"""Layers that compute in half precision around weights in fp32, and the scale that fp16 needs."""

from __future__ import annotations

from collections.abc import Mapping

import alog
import torch

log = alog.use_channel(__name__)

_DTYPES: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
#: torch's ``GradScaler`` starts, grows, shrinks and waits like this.
_FIRST_SCALE = 65536.0
_GROWTH, _SHRINKAGE = 2.0, 0.5
_GROWTH_UPDATES = 2000
#: How the scale is called in a checkpoint; no parameter's name has a space.
_SCALE_KEY, _COUNT_KEY = "loss scale::scale", "loss scale::updates"


def autocast_dtype(word: str) -> torch.dtype | None:
    """The dtype of the option ``mixed_precision``; None for ``off``."""
    return _DTYPES.get(word)


class LossScale:
    """What the loss is multiplied with, so that small gradients do not become 0 in fp16.

    A gradient that is not finite means that the scale is too large: the update is left out and the
    scale halved. After 2000 good updates it is doubled.

    Args:
        word: The option ``mixed_precision``. For all but ``float16`` the scale is 1 and stays so.

    Source:
        Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740; the numbers are those of
        ``torch.amp.GradScaler``.
    """

    def __init__(self, word: str) -> None:
        self.is_used = word == "float16"
        self.value = _FIRST_SCALE if self.is_used else 1.0
        self._num_good = 0

    def unscale(self, gradients: list[torch.Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        if self.is_used and gradients:
            torch._foreach_mul_(gradients, 1.0 / self.value)

    def note_good_update(self) -> None:
        """An update was made."""
        self._num_good += 1
        if self.is_used and self._num_good == _GROWTH_UPDATES:
            self.value *= _GROWTH
            self._num_good = 0

    def lower(self) -> bool:
        """Halve the scale, because a gradient was not finite.

        Returns:
            False if that is no help: there is no scale, or it was 1 or less.
        """
        if not self.is_used or self.value <= 1:
            return False
        self.value *= _SHRINKAGE
        self._num_good = 0
        log.info("an update is left out: a gradient overflowed; loss_scale=%g", self.value)
        return True

    def tensors(self) -> dict[str, torch.Tensor]:
        """The scale for a checkpoint; nothing where none is used."""
        if not self.is_used:
            return {}
        return {
            _SCALE_KEY: torch.tensor(self.value, dtype=torch.float64),
            _COUNT_KEY: torch.tensor(self._num_good),
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Put back what ``tensors`` gave.

        Args:
            tensors: May hold others.

        Returns:
            The others.
        """
        if self.is_used and _SCALE_KEY in tensors:
            self.value = float(tensors[_SCALE_KEY])
            self._num_good = int(tensors[_COUNT_KEY])
        own = (_SCALE_KEY, _COUNT_KEY)
        return {name: tensor for name, tensor in tensors.items() if name not in own}
