from collections.abc import Callable

import pytest

from luthier.client import training_calls
from luthier.client.call import Call
from luthier.client.results import TrainingJob
from luthier.client.training_calls import ServerFile
from luthier.errors import InvalidInputError


def test_train_sends_records_inline_in_caikits_shape() -> None:
    call = training_calls.train_prompt(
        "tuned",
        base_model="base",
        train_data=[{"input": "a", "output": "b"}],
        validation_data=ServerFile("/data/val.jsonl"),
        tuning_config={"num_virtual_tokens": 4},
        num_epochs=2,
        seed=None,
    )
    assert call.path == "/api/v1/TextGenerationTaskPeftPromptTuningTrain"
    assert call.body == {
        "model_name": "tuned",
        "parameters": {
            "base_model": "base",
            "train_stream": {"data_stream": {"data": [{"input": "a", "output": "b"}]}},
            "tuning_config": {"num_virtual_tokens": 4},
            "num_epochs": 2,
            "val_stream": {"data_stream": {"filename": "/data/val.jsonl"}},
        },
    }


def test_row_that_is_no_record_is_named() -> None:
    with pytest.raises(InvalidInputError, match="row 2 of 'train_stream'"):
        training_calls.train_lora(
            "tuned",
            base_model="base",
            train_data=[{"input": "a", "output": "b"}, "text"],  # type: ignore[list-item]
        )


@pytest.mark.parametrize(
    ("train", "path"),
    [
        (training_calls.train_lora, "TextGenerationTaskLoraTuningTrain"),
        (training_calls.train_head, "TextClassificationTaskHeadTuningTrain"),
        (training_calls.train_full, "TextGenerationTaskTextGenerationTrain"),
    ],
)
def test_each_method_has_its_route(train: Callable[..., Call[TrainingJob]], path: str) -> None:
    call = train("tuned", base_model="base", train_data=ServerFile("rows.jsonl"), num_epochs=1)
    assert call.path == f"/api/v1/{path}"
    assert call.body == {
        "model_name": "tuned",
        "parameters": {
            "base_model": "base",
            "train_stream": {"data_stream": {"filename": "rows.jsonl"}},
            "num_epochs": 1,
        },
    }
