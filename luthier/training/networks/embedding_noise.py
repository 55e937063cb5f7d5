"""NEFTune: uniform noise on the input embeddings while training, and only then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from luthier.data_model.options.dataset_options import DatasetOptions


def embedding_noise_of(options: DatasetOptions | None, *, seed: int) -> EmbeddingNoise | None:
    """The noise that options ask for, or None.

    Args:
        options: Of the data set; None asks for nothing.
        seed: Of the training.

    Returns:
        Noise.
    """
    if options is None or not options.neftune_noise_alpha:
        return None
    return EmbeddingNoise(options.neftune_noise_alpha, seed=seed)


class EmbeddingNoise:
    """Noise of its own generator for one training.

    Each number of a row is drawn from ±alpha / sqrt(T · D), T the row's own tokens: what stands
    beside it in the batch does not matter, padding stays as it is, and virtual tokens get none.

    Args:
        alpha: Strength; the paper tries 5, 10 and 15.
        seed: Of the training.

    Source:
        Jain et al. 2023, https://arxiv.org/abs/2310.05914
    """

    def __init__(self, alpha: float, *, seed: int) -> None:
        self._alpha = alpha
        self._seed = seed
        self._generator = torch.Generator()
        self._mask: torch.Tensor | None = None

    def listen_to(self, layer: nn.Module) -> None:
        """Add noise to what an embedding layer gives, for as long as ``applied`` lasts.

        Args:
            layer: The caller's own; others would get the noise too.
        """
        layer.register_forward_hook(lambda _layer, _ids, output: self.noisy(output))

    @contextlib.contextmanager
    def applied(self, attention_mask: torch.Tensor, *, batch: int) -> Iterator[None]:
        """Noise for one batch, a function of seed and number alone.

        Args:
            attention_mask: 1 on tokens, [B, T].
            batch: Number of the batch in the whole training.

        Yields:
            Nothing.
        """
        self._generator.manual_seed((self._seed * 1_000_003 + batch) % 2**63)
        self._mask = attention_mask
        try:
            yield
        finally:
            self._mask = None

    def noisy(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings with the next noise, [B, T, D]; as they are where none is applied."""
        mask = self._mask
        if mask is None:
            return embeddings
        if mask.shape != embeddings.shape[:2]:  # What a decoder reads has a length of its own.
            mask = torch.ones(embeddings.shape[:2], device=embeddings.device)
        num_tokens = mask.sum(dim=1).clamp(min=1)
        magnitude = self._alpha / (num_tokens * embeddings.shape[-1]).sqrt()
        # Drawn on the CPU, so that every device gets the same.
        unit = torch.rand(embeddings.shape, generator=self._generator).mul_(2).sub_(1)
        noise = unit.to(embeddings.device) * (magnitude[:, None] * mask)[..., None]
        return embeddings + noise.to(embeddings.dtype)
