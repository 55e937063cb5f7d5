"""From files of every shape to a model that has learned them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.adapters.lora.building import create_lora
from luthier.data_model.datasets.dataset import Dataset, load_dataset
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import ConflictError, InvalidInputError
from luthier.resources.base_model import BaseModel
from luthier.training.loop import tune
from luthier.training.results import TrainingResult

LORA = LoraConfig(rank=4, alpha=8)
FACTS = {"Where is my parcel?": "delivery", "I was charged twice": "billing", "No link": "account"}

MESSAGES = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in FACTS.items()
]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
    for q, a in FACTS.items()
]
ALPACA = [{"instruction": "Label it.", "input": q, "output": a} for q, a in FACTS.items()]
PAIRS = [{"prompt": q, "completion": a} for q, a in FACTS.items()]
LABELS = [{"text": q, "label": a} for q, a in FACTS.items()]
TEXTS = [{"text": f"{q} {a}", "source": "x"} for q, a in FACTS.items()]
CHAINED = [
    {"id": str(n), "parent_id": str(n - 1) if n else None, "prompt": q, "response": a}
    for n, (q, a) in enumerate(FACTS.items())
]


def _load(folder: Path, rows: list[dict[str, Any]], options: DatasetOptions) -> Dataset:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 4), "utf-8")
    if rows is CHAINED:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return load_dataset(
        DatasetOptions(**{**vars(options), "train_dataframe": str(path), "validation_size": 0.0})
    )


def _train(
    base: BaseModel, folder: Path, rows: list[dict[str, Any]], *, epochs: int = 12, **given: Any
) -> tuple[TrainingResult, list[torch.Tensor]]:
    options = DatasetOptions(**given)
    data = _load(folder, rows, options)
    adapter = create_lora(base.model, LORA, seed=5)
    training = TrainingOptions(
        num_epochs=epochs, learning_rate=0.02, batch_size=4, accumulate_steps=1, seed=3
    )
    result = tune(
        base, adapter, data.train, validation=data.validation, options=training, dataset=options
    )
    return result, [parameter.detach().clone() for _, parameter in adapter.named_parameters()]


@pytest.mark.parametrize(
    "rows",
    [MESSAGES, SHAREGPT, ALPACA, PAIRS, LABELS, TEXTS, CHAINED],
    ids=["messages", "sharegpt", "alpaca", "pairs", "labels", "texts", "chained"],
)
def test_a_causal_model_learns_every_shape(
    tiny_causal_base: BaseModel, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    epochs = 40 if rows is CHAINED else 12
    result, _ = _train(tiny_causal_base, tmp_path, rows, epochs=epochs)
    first, last = result.losses[0].value, result.losses[-1].value
    assert last < 0.4 * first, f"loss {first:.2f} became {last:.2f}"


@pytest.mark.parametrize("rows", [PAIRS, MESSAGES, CHAINED], ids=["pairs", "messages", "chained"])
def test_a_seq2seq_model_learns_answers(
    tiny_seq2seq_base: BaseModel, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    epochs = 80 if rows is CHAINED else 40
    result, _ = _train(tiny_seq2seq_base, tmp_path, rows, epochs=epochs)
    assert result.losses[-1].value < 0.4 * result.losses[0].value


@pytest.mark.parametrize(
    "given",
    [
        {"token_mask_probability": 0.3},
        {"skip_parent_probability": 0.5},
        {"random_parent_probability": 0.5},
        {"padding_quantile": 0.5},
        {"neftune_noise_alpha": 10.0},
    ],
    ids=lambda given: next(iter(given)),
)
def test_an_augmentation_changes_what_is_learned_and_is_repeatable(
    tiny_causal_base: BaseModel, tmp_path: Path, given: dict[str, float]
) -> None:
    plain, _ = _train(tiny_causal_base, tmp_path, CHAINED, epochs=3)
    first, learned = _train(tiny_causal_base, tmp_path, CHAINED, epochs=3, **given)
    again, relearned = _train(tiny_causal_base, tmp_path, CHAINED, epochs=3, **given)
    assert [point.value for point in first.losses] != [point.value for point in plain.losses]
    assert [point.value for point in first.losses] == [point.value for point in again.losses]
    assert all(map(torch.equal, learned, relearned))


def test_noise_reaches_a_seq2seq_model(tiny_seq2seq_base: BaseModel, tmp_path: Path) -> None:
    plain, _ = _train(tiny_seq2seq_base, tmp_path, PAIRS, epochs=1)
    noisy, _ = _train(tiny_seq2seq_base, tmp_path, PAIRS, epochs=1, neftune_noise_alpha=10.0)
    assert plain.losses[0].value != noisy.losses[0].value


def test_other_turns_need_conversations(tiny_causal_base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="need conversations"):
        _train(tiny_causal_base, tmp_path, PAIRS, epochs=1, skip_parent_probability=0.5)


def test_a_training_with_other_augmentations_is_not_resumed(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    options = TrainingOptions(num_epochs=1, batch_size=4, accumulate_steps=1, seed=3)
    records = list(_load(tmp_path, MESSAGES, DatasetOptions()).train)
    run_folder = tmp_path / "run"
    masked = DatasetOptions(token_mask_probability=0.2)
    tune(
        tiny_causal_base,
        create_lora(tiny_causal_base.model, LORA, seed=5),
        records,
        options=options,
        dataset=masked,
        run_folder=run_folder,
    )
    with pytest.raises(ConflictError, match=r"token_mask_probability.* was 0\.2 and is 0\.3"):
        tune(
            tiny_causal_base,
            create_lora(tiny_causal_base.model, LORA, seed=5),
            records,
            options=options,
            dataset=DatasetOptions(token_mask_probability=0.3),
            resume_from=run_folder,
        )
