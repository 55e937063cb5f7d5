"""Shares of weights where there are processes to share with; what two of them learn is tested in
``test_parallel``."""

import pytest
import torch
from fixtures.parallel_training import RECORDS
from torch import nn

from luthier.adapters.full_weights import FullWeights
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import NotSupportedError
from luthier.resources.base_model import BaseModel
from luthier.training.loop import tune
from luthier.training.processes.sharding import share_like, whole_tensor


def test_one_process_has_nobody_to_share_with(tiny_causal_base: BaseModel) -> None:
    options = TrainingOptions(use_fsdp=True)
    with pytest.raises(NotSupportedError, match="'use_fsdp' shares weights out"):
        tune(tiny_causal_base, FullWeights(tiny_causal_base.model), RECORDS, options=options)


def test_metrics_of_text_are_refused_with_shares(tiny_causal_base: BaseModel) -> None:
    with pytest.raises(NotSupportedError, match="no process has the whole model"):
        tune(
            tiny_causal_base,
            FullWeights(tiny_causal_base.model),
            RECORDS,
            validation=RECORDS,
            options=TrainingOptions(use_fsdp=True, metrics=("bleu",)),
            generate=lambda sources: ["text"] * len(sources),
        )


def test_what_is_whole_stays_as_it_is() -> None:
    tensor = torch.ones(3)
    assert whole_tensor(tensor) is tensor
    assert share_like(tensor, nn.Parameter(torch.zeros(3))) is tensor
