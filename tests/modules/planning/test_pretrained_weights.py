"""Where full fine-tuning may start: any file of one's own machine, few names from a request."""

from __future__ import annotations

import shutil

import pytest
import torch
from fixtures.train_plans import WHOLE
from safetensors.torch import save_file

from luthier.errors import (
    ArtifactError,
    InvalidInputError,
    LuthierError,
    NameNotAllowedError,
    NotFoundError,
)
from luthier.modules import LoraTuning, TextGeneration, plan_train
from luthier.modules.planning.pretrained_weights import find_weights, full_weights


@pytest.fixture
def places(tiny_causal_base, tiny_causal_dir, configured, tmp_path):
    """Weights below base_models_dir and the models' folder, and weights outside of both."""
    bases, models, outside = (tmp_path / name for name in ("bases", "models", "outside"))
    for folder in (bases / "org", models, outside):
        folder.mkdir(parents=True)
    shutil.copytree(tiny_causal_dir, bases / "tiny-causal")
    weights = {
        name: torch.full_like(tensor, 0.25)
        for name, tensor in tiny_causal_base.model.state_dict().items()
    }
    for folder in (bases / "org", outside):
        save_file(weights, folder / "weights.safetensors")
    here = configured(BASE_MODELS_DIR=str(bases), RUNTIME_TRAINING_OUTPUT_DIR=str(models))
    TextGeneration.bootstrap(tiny_causal_base).save(models / "tuned")
    return bases, models, outside, here


def plan(name, **changes):
    settings = {"training_options": {"pretrained_weights": str(name)}}
    return plan_train(TextGeneration.MODULE_ID, WHOLE | settings | changes)


def test_a_file_takes_the_place_of_the_base_models_weights(places, tiny_causal_base):
    _, _, outside, here = places
    files = find_weights(str(outside / "weights.safetensors"), here, from_request=False)
    adapter = full_weights(tiny_causal_base, files, is_shared_out=False)
    assert all((parameter == 0.25).all() for _, parameter in adapter.named_parameters())
    kept = full_weights(tiny_causal_base, (), is_shared_out=False)
    for name, parameter in kept.named_parameters():
        assert parameter.equal(tiny_causal_base.model.get_parameter(name))


@pytest.mark.usefixtures("places")
def test_a_model_is_learned_from_there():
    options = {"pretrained_weights": "org/weights.safetensors", "num_epochs": 0}
    model = TextGeneration.train("tiny-causal", WHOLE["train_stream"], from_request=True, **options)
    assert (model.base_model.embedding_weight == 0.25).all()


@pytest.mark.parametrize("name", ["org/weights.safetensors", "tuned", "tiny-causal"])
def test_a_request_may_name_what_the_operator_has(places, name):
    (file,) = plan(name, from_request=True).weights
    assert file.suffix == ".safetensors"


def test_a_request_may_name_a_path_below_base_models_dir(places):
    bases, *_ = places
    path = bases / "org" / "weights.safetensors"
    assert plan(path, from_request=True).weights == (path.resolve(),)


@pytest.mark.parametrize(
    "name",
    [
        "{outside}/weights.safetensors",
        "{bases}/../outside/weights.safetensors",
        "{models}/tuned/artifacts/model.safetensors",
        "../outside/weights.safetensors",
        "org/../../outside/weights.safetensors",
        "~/weights.safetensors",
        "./org/weights.safetensors",
        "link.safetensors",
        "{bases}/link.safetensors",
        "linked/weights.safetensors",
        "linked-model",
        "model-of-links",
        "org%2f..%2f..%2foutside",
        "org\\weights.safetensors",
        "{bases}/a\0b",
        "/etc/passwd",
    ],
)
def test_a_request_may_name_nothing_else(places, name):
    bases, models, outside, _ = places
    (bases / "link.safetensors").symlink_to(outside / "weights.safetensors")
    (bases / "linked").symlink_to(outside)
    (models / "linked-model").symlink_to(outside)
    shutil.copytree(bases / "tiny-causal", bases / "model-of-links")
    (bases / "model-of-links" / "model.safetensors").unlink()
    (bases / "model-of-links" / "model.safetensors").symlink_to(outside / "weights.safetensors")
    where = name.format(bases=bases, models=models, outside=outside)
    with pytest.raises(NameNotAllowedError, match="pretrained_weights"):
        plan(where, from_request=True)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing", NotFoundError, "there is no such tuned model"),
        ("org", LuthierError, "neither config.json nor"),
    ],
)
def test_what_is_not_there_is_told(places, name, error, message):
    with pytest.raises(error, match=message):
        plan(name, from_request=True)


def test_python_may_name_any_file_but_not_nothing(places):
    _, _, outside, _ = places
    assert plan(outside / "weights.safetensors").weights
    with pytest.raises(NotFoundError, match="no such file or folder"):
        plan(outside / "none.safetensors")


def test_adapters_have_no_use_for_them(places):
    settings = {"training_options": {"pretrained_weights": "tuned"}}
    with pytest.raises(InvalidInputError, match=r"no use but with full fine-tuning.*'start_from'"):
        plan_train(LoraTuning.MODULE_ID, WHOLE | settings)


def test_files_that_hold_the_same_tensor_are_refused(places, tiny_causal_base):
    bases, _, outside, _ = places
    files = (bases / "org" / "weights.safetensors", outside / "weights.safetensors")
    with pytest.raises(ArtifactError, match="as another file does"):
        full_weights(tiny_causal_base, files, is_shared_out=False)
