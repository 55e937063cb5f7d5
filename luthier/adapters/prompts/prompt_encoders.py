"""Small networks that prompts are learned through: P-tuning's encoders, prefix tuning's projection.

They exist while a prompt is learned; what comes out of them is what is saved and served. Parameters
have PEFT's names, and start as PEFT's do after ``torch.manual_seed`` with the generator's seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from luthier.data_model.options.prompt_encoder import PromptEncoderOptions


class MlpEncoder(nn.Module):
    """Three linear layers with ReLU between them.

    Args:
        width: D, of the rows that go in and come out.
        hidden_size: Of the two layers between.
        generator: Draws the start.

    Shape:
        forward: [P, D] -> [P, D].
    """

    def __init__(self, width: int, hidden_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mlp_head = nn.Sequential(
            drawn_linear(width, hidden_size, generator),
            nn.ReLU(),
            drawn_linear(hidden_size, hidden_size, generator),
            nn.ReLU(),
            drawn_linear(hidden_size, width, generator),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The encoded rows."""
        encoded: torch.Tensor = self.mlp_head(rows)
        return encoded


class LstmEncoder(nn.Module):
    """A bidirectional LSTM along the rows, then two linear layers.

    Dropout between the LSTM's layers acts where a gradient is recorded.

    Args:
        width: D, of the rows that go in and come out.
        options: Hidden size, layers, dropout.
        hidden_size: Of the LSTM, in each direction.
        generator: Draws the start.

    Shape:
        forward: [P, D] -> [P, D].
    """

    def __init__(
        self,
        width: int,
        options: PromptEncoderOptions,
        hidden_size: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        # Made without numbers first, so that torch's global generator is left alone.
        self.lstm_head = nn.LSTM(
            width,
            hidden_size,
            num_layers=options.num_layers,
            dropout=options.dropout if options.num_layers > 1 else 0.0,
            bidirectional=True,
            batch_first=True,
            device="meta",
        ).to_empty(device="cpu")
        _draw_uniform(self.lstm_head.parameters(), 1 / math.sqrt(hidden_size), generator)
        self.mlp_head = nn.Sequential(
            drawn_linear(2 * hidden_size, 2 * hidden_size, generator),
            nn.ReLU(),
            drawn_linear(2 * hidden_size, width, generator),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The encoded rows."""
        if self.lstm_head.dropout:
            self.lstm_head.train(torch.is_grad_enabled())
        encoded: torch.Tensor = self.mlp_head(self.lstm_head(rows[None])[0])
        return encoded[0]


class PrefixProjection(nn.Module):
    """Two linear layers with tanh between them, from a row of a prefix to all its keys and values.

    Args:
        width: Of the rows that go in.
        hidden_size: Between.
        num_outputs: Keys and values of one virtual token, 2·L·K·Dh.
        generator: Draws the start.

    Shape:
        forward: [P, width] -> [P, num_outputs].
    """

    def __init__(
        self, width: int, hidden_size: int, num_outputs: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.transform = nn.Sequential(
            drawn_linear(width, hidden_size, generator),
            nn.Tanh(),
            drawn_linear(hidden_size, num_outputs, generator),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Keys and values, flat."""
        projected: torch.Tensor = self.transform(rows)
        return projected


def drawn_linear(num_in: int, num_out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer that starts as torch's does, drawn from ``generator`` alone.

    Args:
        num_in: Size of its input.
        num_out: Size of its output.
        generator: On the CPU; advanced.

    Returns:
        The layer, on the CPU in float32.
    """
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, num_in, num_out, device="cpu")
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    _draw_uniform([layer.bias], 1 / math.sqrt(num_in), generator)
    return layer


def _draw_uniform(
    parameters: Iterable[nn.Parameter], bound: float, generator: torch.Generator
) -> None:
    for parameter in parameters:
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
