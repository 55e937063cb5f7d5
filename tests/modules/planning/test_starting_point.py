"""Trainings that start from an earlier result."""

from pathlib import Path

import pytest
import torch
from fixtures.train_rows import ROWS

from luthier.errors import ArtifactError, InvalidInputError, NameNotAllowedError, NotFoundError
from luthier.modules import LoraTuning, PeftPromptTuning, TextGeneration
from luthier.modules.planning.starting_point import find_start

QUICK = {"num_epochs": 1, "batch_size": 4, "accumulate_steps": 1}
PROMPT = {"num_virtual_tokens": 4}
LORA = {"rank": 2, "learning_rate": 1e-3}


@pytest.fixture
def tuned_lora(tiny_causal_dir: Path, tmp_path: Path) -> Path:
    model = LoraTuning.train(str(tiny_causal_dir), ROWS, **LORA, **QUICK)
    model.save(tmp_path / "lora")
    model.release()
    return tmp_path / "lora"


def _first_loss(model: LoraTuning | PeftPromptTuning) -> float:
    return model.training_logs[0]["data"]["value"]


def test_a_lora_goes_on_from_a_saved_model_and_from_pefts_folder(
    tiny_causal_dir: Path, tuned_lora: Path
) -> None:
    anew = LoraTuning.train(str(tiny_causal_dir), ROWS, **LORA, **QUICK)
    for start in (tuned_lora, tuned_lora / "adapter"):
        model = LoraTuning.train(str(tiny_causal_dir), ROWS, **LORA, start_from=str(start), **QUICK)
        assert _first_loss(model) != _first_loss(anew)
        assert model.lora.config.rank == 2
        model.release()
    still = LoraTuning.train(
        str(tiny_causal_dir), ROWS, rank=2, start_from=str(tuned_lora), learning_rate=1e-12, **QUICK
    )
    loaded = LoraTuning.load(tuned_lora, base_model=str(tiny_causal_dir))
    for name, parameter in loaded.lora.named_parameters():
        close = dict(still.lora.named_parameters())[name]
        assert torch.allclose(parameter, close, atol=1e-6)
    for each in (anew, still, loaded):
        each.release()


def test_stages_a_prompt_and_then_the_same_prompt_on_other_rows(
    tiny_causal_dir: Path, tmp_path: Path
) -> None:
    first = PeftPromptTuning.train(
        str(tiny_causal_dir), ROWS, PROMPT, tuning_type="P_TUNING", **QUICK
    )
    first.save(tmp_path / "first")
    second = PeftPromptTuning.train(
        str(tiny_causal_dir),
        ROWS[:2],
        PROMPT,
        tuning_type="P_TUNING",
        start_from=str(tmp_path / "first"),
        learning_rate=1e-12,
        **QUICK,
    )
    tokens = [model.adapter.soft_prompt().decoder for model in (first, second)]
    torch.testing.assert_close(*tokens, atol=1e-6, rtol=0)
    first.release()
    second.release()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 4}, "'rank' is 4, that of 'start_from' 2"),
        ({"use_dora": True}, "'use_dora' is True, that of 'start_from' False"),
    ],
)
def test_an_option_that_differs_from_the_earlier_result_is_refused(
    tiny_causal_dir: Path, tuned_lora: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        LoraTuning.train(
            str(tiny_causal_dir), ROWS, **arguments, start_from=str(tuned_lora), **QUICK
        )


def test_a_result_of_another_method_is_refused(tiny_causal_dir: Path, tuned_lora: Path) -> None:
    with pytest.raises(InvalidInputError, match="is the result of lora, this training is prompt_"):
        PeftPromptTuning.train(
            str(tiny_causal_dir), ROWS, PROMPT, start_from=str(tuned_lora), **QUICK
        )
    with pytest.raises(InvalidInputError, match="gone on from as 'base_model'"):
        TextGeneration.train(str(tiny_causal_dir), ROWS, start_from=str(tuned_lora))


def test_a_request_names_a_tuned_model_of_the_server_and_nothing_else(
    tuned_lora: Path, tmp_path: Path
) -> None:
    found = find_start("lora", models_dir=tmp_path, from_request=True)
    assert found == (tuned_lora / "adapter").resolve()
    for name in ("../lora", "/etc", str(tuned_lora)):
        with pytest.raises(NameNotAllowedError):
            find_start(name, models_dir=tmp_path, from_request=True)
    with pytest.raises(NotFoundError, match="'start_from' 'none'"):
        find_start("none", models_dir=tmp_path, from_request=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no adapter"):
        find_start("empty", models_dir=tmp_path, from_request=True)
