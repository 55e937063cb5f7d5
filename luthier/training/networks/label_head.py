"""Logits only where there are labels, for any model of transformers.

On short rows with short answers most of the output layer's work is for tokens that nobody asks
about. ``LabelHead`` takes the place of a model's output layer and hands on only the positions that
have a label; everything that a model does before (T5's scaling) or after it (a soft cap, a scale)
still happens.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import NotSupportedError


class LabelHead(nn.Module):
    """An output layer that sees only chosen positions.

    Args:
        head: The model's own output layer, [.., D] -> [.., V].

    Shape:
        forward: hidden [B, T, D] -> logits [1, N, V] at the N chosen positions; [1, 0, V] while
        ``keeps_hidden`` is True. ``hidden`` then holds [N, D] for whoever computes the loss.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.keeps_hidden = False
        self.hidden: torch.Tensor | None = None
        self._chosen: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The model's own; some models look at its precision."""
        weight = self.head.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def choose(self, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """Look at hidden[rows[i], positions[i]] in the next pass, both [N]."""
        self._chosen = (rows, positions)
        self.hidden = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of the chosen positions."""
        assert self._chosen is not None
        if hidden.ndim != 3:
            raise NotSupportedError(
                "the base model's output layer reads hidden states of shape "
                f"{list(hidden.shape)}; training knows [rows, tokens, hidden size] only"
            )
        self.hidden = hidden[self._chosen]
        if self.keeps_hidden:
            return self.hidden.new_zeros((1, 0, 1))
        logits: torch.Tensor = self.head(self.hidden)
        return logits[None]


def install_label_head(model: PreTrainedModel) -> LabelHead:
    """Put a ``LabelHead`` in the place of the model's output layer.

    Args:
        model: Changed in place; hand in an ``own_module_tree``.

    Returns:
        The layer. Its ``keeps_hidden`` is True if a linear layer is the last thing that the model
        does, so that hidden states and weights are all that a loss needs.

    Raises:
        NotSupportedError: If the model makes its logits by other means.
    """
    head = model.get_output_embeddings()
    name = next((name for name, layer in model.named_modules() if layer is head), None)
    if head is None or name is None:
        raise _unknown_head(model)
    label_head = LabelHead(head)
    model.set_submodule(name, label_head)
    label_head.keeps_hidden = isinstance(head, nn.Linear) and _is_last(model, label_head)
    return label_head


@torch.no_grad()
def _is_last(model: PreTrainedModel, label_head: LabelHead) -> bool:
    """Whether the model's logits are its head's, bit for bit, on two tokens."""
    device = model.device
    tokens = torch.tensor([[1, 2]], device=device)
    label_head.choose(torch.tensor([0, 0], device=device), torch.tensor([0, 1], device=device))
    decoder_inputs = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    logits = model(input_ids=tokens, use_cache=False, **decoder_inputs).logits
    if label_head.hidden is None:
        raise _unknown_head(model)
    return torch.equal(logits[0].float(), label_head.head(label_head.hidden).float())


def _unknown_head(model: PreTrainedModel) -> NotSupportedError:
    return NotSupportedError(
        f"a base model of type {model.config.model_type!r} has no output layer that training knows"
    )
