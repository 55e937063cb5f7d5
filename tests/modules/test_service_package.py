"""The wire is frozen: names, numbers and bytes."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from caikit.core.signature_parsing.module_signature import CaikitMethodSignature
from caikit.interfaces.nlp.tasks import TextGenerationTask
from caikit.runtime.service_generation.rpcs import TaskPredictRPC
from google.protobuf import descriptor_pb2

from luthier.data_model.generation import GeneratedTextResult
from luthier.modules.service_package import frozen_numbers, service_packages

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
REFERENCE = Path(os.environ.get("LUTHIER_SHARED", ROOT.parent / "shared")) / "reference/wire/protos"

# Typed here once more on purpose: these numbers are in clients that we do not own.
GENERATION_REQUEST = [
    "text", "max_new_tokens", "min_new_tokens", "truncate_input_tokens", "decoding_method",
    "top_k", "top_p", "typical_p", "temperature", "repetition_penalty", "max_time",
    "exponential_decay_length_penalty", "stop_sequences", "seed", "preserve_input_text",
    "input_tokens", "generated_tokens", "token_logprobs", "token_ranks", "include_stop_sequence",
    "min_p", "num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size",
]  # fmt: skip
PROMPT_TUNING_PARAMETERS = [
    "base_model", "train_stream", "tuning_config", "val_stream", "device", "tuning_type",
    "num_epochs", "learning_rate", "verbalizer", "batch_size", "max_source_length",
    "max_target_length", "accumulate_steps", "torch_dtype", "silence_progress_bars", "seed",
    "training_options",
]  # fmt: skip
FINE_TUNING_PARAMETERS = [
    "base_model", "train_stream", "torch_dtype", "max_source_length", "max_target_length",
    "batch_size", "num_epochs", "accumulate_steps", "random_seed", "lr", "use_iterable_dataset",
    "val_stream", "verbalizer", "training_options",
]  # fmt: skip
LORA_TUNING_PARAMETERS = [
    "base_model", "train_stream", "val_stream", "rank", "alpha", "dropout", "use_rslora",
    "use_dora", "target_modules", "exclude_modules", "modules_to_save", "unfreeze_layers",
    "rank_pattern", "alpha_pattern", "initialisation", "lora_plus_ratio", "device", "num_epochs",
    "learning_rate", "verbalizer", "batch_size", "max_source_length", "max_target_length",
    "accumulate_steps", "torch_dtype", "silence_progress_bars", "seed", "training_options",
]  # fmt: skip
HEAD_TUNING_PARAMETERS = [
    "base_model", "train_stream", "val_stream", "labels", "use_lora", "rank", "alpha", "dropout",
    "use_rslora", "use_dora", "target_modules", "exclude_modules", "lora_plus_ratio", "device",
    "num_epochs", "learning_rate", "verbalizer", "batch_size", "max_source_length",
    "accumulate_steps", "torch_dtype", "silence_progress_bars", "seed", "training_options",
    "rank_pattern", "alpha_pattern", "initialisation", "layers_to_transform", "layers_pattern",
    "modules_to_save", "unfreeze_layers", "trainable_token_indices",
]  # fmt: skip
FROZEN = {
    "TextGenerationTaskRequest": GENERATION_REQUEST,
    "ServerStreamingTextGenerationTaskRequest": GENERATION_REQUEST,
    "TextGenerationTaskPeftPromptTuningTrainParameters": PROMPT_TUNING_PARAMETERS,
    "TextGenerationTaskTextGenerationTrainParameters": FINE_TUNING_PARAMETERS,
    "TextGenerationTaskLoraTuningTrainParameters": LORA_TUNING_PARAMETERS,
    "TextGenerationTaskLoraTuningTrainRequest": ["model_name", "output_path", "parameters"],
    "TextGenerationTaskPeftPromptTuningTrainRequest": ["model_name", "output_path", "parameters"],
    "TextGenerationTaskTextGenerationTrainRequest": ["model_name", "output_path", "parameters"],
    "TextClassificationTaskHeadTuningTrainParameters": HEAD_TUNING_PARAMETERS,
    "TextClassificationTaskHeadTuningTrainRequest": ["model_name", "output_path", "parameters"],
    "TextClassificationTaskRequest": ["text"],
    "TokenizationTaskRequest": ["text"],
    "DataStreamSourceGenerationTrainRecord": [
        "jsondata", "file", "list_of_files", "directory", "s3files",
    ],
    "DataStreamSourceClassificationTrainRecord": [
        "jsondata", "file", "list_of_files", "directory", "s3files",
    ],
}  # fmt: skip
#: Files of caikit-nlp's messages that have fields of ours after theirs.
APPENDED_TO = {
    "caikit.runtime.Nlp.textgenerationtaskrequest.proto",
    "caikit.runtime.Nlp.serverstreamingtextgenerationtaskrequest.proto",
    "caikit.runtime.Nlp.textgenerationtaskpeftprompttuningtrainparameters.proto",
    "caikit.runtime.Nlp.textgenerationtasktextgenerationtrainparameters.proto",
    "caikit_data_model.caikit_nlp.generationtrainrecord.proto",
    "caikit_data_model.caikit_nlp.tuningconfig.proto",
}


@pytest.fixture(scope="module")
def renderer():
    spec = importlib.util.spec_from_file_location(
        "render_protos", ROOT / "scripts" / "render_protos.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["render_protos"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["render_protos"]


@pytest.fixture(scope="module")
def rendered(renderer):
    return renderer.render_protos(renderer.wire_files(service_packages()))


def test_committed_protos_are_what_the_modules_render(rendered):
    committed = {path.name: path.read_text("utf-8") for path in PROTOS.glob("*.proto")}
    assert rendered == committed


def test_committed_numbers_are_what_the_modules_render(renderer):
    files = renderer.wire_files(service_packages())
    assert json.loads(renderer.render_numbers(files)) == frozen_numbers()


def test_every_message_of_caikit_nlp_that_we_have_is_theirs_with_fields_appended(rendered):
    if not REFERENCE.is_dir():
        pytest.skip("caikit-nlp's protos are not here")
    theirs = {path.name: path.read_text("utf-8") for path in REFERENCE.glob("*.proto")}
    ours_alone = {"modelmanagement.proto", "trainingcontrol.proto"}
    for training in ("textgenerationtasklora", "textclassificationtaskhead"):
        for part in ("parameters", "request"):
            ours_alone.add(f"caikit.runtime.Nlp.{training}tuningtrain{part}.proto")
    # Nobody could tune a classifier there, so its records have no stream.
    stream = "caikit.runtime.Nlp.datastreamsourceclassificationtrainrecord"
    ours_alone |= {f"{stream}.proto", f"{stream}jsondata.proto"}
    ours_alone |= {name for name in rendered if name.startswith("caikit_data_model.luthier.")}
    services = {"nlpservice.proto", "nlptrainingservice.proto"}
    assert rendered.keys() - theirs.keys() == ours_alone
    for name in rendered.keys() - ours_alone - services:
        ours = rendered[name].splitlines()
        assert [line for line in theirs[name].splitlines() if line not in ours] == [], name
        assert len(ours) == len(theirs[name].splitlines()) or name in APPENDED_TO, name


def test_the_service_is_a_subset_of_caikit_nlps(rendered):
    if not REFERENCE.is_dir():
        pytest.skip("caikit-nlp's protos are not here")
    theirs = (REFERENCE / "nlpservice.proto").read_text("utf-8").splitlines()
    ours = rendered["nlpservice.proto"].splitlines()
    assert [line for line in ours if line not in theirs] == []


def test_the_training_service_is_caikit_nlps_with_ours_added(rendered):
    if not REFERENCE.is_dir():
        pytest.skip("caikit-nlp's protos are not here")
    theirs = (REFERENCE / "nlptrainingservice.proto").read_text("utf-8").splitlines()
    ours = rendered["nlptrainingservice.proto"].splitlines()
    assert [line for line in theirs if line not in ours] == []
    added = [line.lower() for line in ours if line not in theirs]
    assert all("loratuning" in line or "headtuning" in line for line in added)


@pytest.mark.parametrize("message", FROZEN)
def test_field_numbers_never_change(message):
    numbers = {name: number for number, name in enumerate(FROZEN[message], start=1)}
    assert frozen_numbers()[message].items() >= numbers.items()
    descriptor = getattr(service_packages().inference.messages, message, None) or getattr(
        service_packages().training.messages, message
    )
    found = {field.name: field.number for field in descriptor.DESCRIPTOR.fields}
    assert found.items() >= numbers.items()


def test_service_and_rpc_names_are_caikit_nlps():
    packages = service_packages()
    rpcs = {
        getattr(packages, name).descriptor.full_name: sorted(
            method.name for method in getattr(packages, name).descriptor.methods
        )
        for name in (
            "inference",
            "training",
            "training_management",
            "training_control",
            "model_management",
            "info",
        )
    }
    assert rpcs == {
        "caikit.runtime.Nlp.NlpService": [
            "ServerStreamingTextGenerationTaskPredict",
            "TextClassificationTaskPredict",
            "TextGenerationTaskPredict",
            "TokenizationTaskPredict",
        ],
        "caikit.runtime.Nlp.NlpTrainingService": [
            "TextClassificationTaskHeadTuningTrain",
            "TextGenerationTaskLoraTuningTrain",
            "TextGenerationTaskPeftPromptTuningTrain",
            "TextGenerationTaskTextGenerationTrain",
        ],
        "caikit.runtime.training.TrainingManagement": ["CancelTraining", "GetTrainingStatus"],
        "luthier.TrainingControl": ["ResumeTraining"],
        "caikit.runtime.models.ModelManagement": ["DeployModel", "UndeployModel"],
        "caikit.runtime.info.InfoService": ["GetModelsInfo", "GetRuntimeInfo"],
    }


def test_services_are_made_once():
    assert service_packages() is service_packages()


def test_a_new_field_is_appended_wherever_it_stands_in_the_signature():
    service_packages()

    class Sampler:
        def run(self, best_of: int, text: str, max_new_tokens: int = 20) -> GeneratedTextResult:
            """A module with a parameter that nobody had before, first in its signature."""

    rpc = TaskPredictRPC(TextGenerationTask, [CaikitMethodSignature(Sampler, "run")])
    numbers = {name: number for _, name, number in rpc.request.triples}
    assert numbers == {"text": 1, "max_new_tokens": 2, "best_of": len(GENERATION_REQUEST) + 1}


def test_number_of_a_retired_field_is_kept(renderer):
    files = renderer.wire_files(service_packages())
    shorter = []
    for file in files:
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        if file.package != "caikit.runtime.Nlp" or "TokenizationTaskRequest" not in [
            message.name for message in proto.message_type
        ]:
            shorter.append(file)
    numbers = json.loads(renderer.render_numbers(shorter))
    assert numbers["TokenizationTaskRequest"] == {"text": 1}
