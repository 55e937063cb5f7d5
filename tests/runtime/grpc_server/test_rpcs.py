"""Every rpc, called as a client would."""

from __future__ import annotations

import threading
import time

import grpc
import pytest
from caikit.interfaces.runtime.data_model import (
    DeployModelRequest,
    ModelInfoRequest,
    RuntimeInfoRequest,
    TrainingInfoRequest,
    UndeployModelRequest,
)
from fixtures.echo_runtime import RunningRuntime
from google.protobuf.message_factory import GetMessageClass

from luthier.data_model.caller import Caller
from luthier.modules.service_package import service_packages

MODEL = (("mm-model-id", "echo"),)


class Stubs:
    """caikit's generated stubs on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.packages = service_packages()
        self.inference = self.packages.inference.stub_class(channel)
        self.training = self.packages.training.stub_class(channel)
        self.trainings = self.packages.training_management.stub_class(channel)
        self.models = self.packages.model_management.stub_class(channel)
        self.info = self.packages.info.stub_class(channel)

    def request(self, rpc: str, **fields):
        for package in (self.packages.inference, self.packages.training):
            method = package.descriptor.methods_by_name.get(rpc)
            if method is not None:
                return GetMessageClass(method.input_type)(**fields)
        raise LookupError(rpc)


@pytest.fixture(scope="module")
def stubs(runtime: RunningRuntime):
    with runtime.channel() as channel:
        yield Stubs(channel)


def generate(stubs: Stubs, metadata=MODEL, **fields):
    request = stubs.request("TextGenerationTaskPredict", **fields)
    return stubs.inference.TextGenerationTaskPredict(request, metadata=metadata, timeout=60)


def stream(stubs: Stubs, metadata=MODEL, timeout=60, **fields):
    request = stubs.request("ServerStreamingTextGenerationTaskPredict", **fields)
    rpc = stubs.inference.ServerStreamingTextGenerationTaskPredict
    return rpc(request, metadata=metadata, timeout=timeout)


def test_text_is_generated(stubs):
    assert generate(stubs, text="a b c").generated_text == "cba"


def test_every_parameter_that_is_set_reaches_the_model(stubs, runtime):
    penalty = {"start_index": 2, "decay_factor": 1.5}
    generate(
        stubs,
        text="x",
        max_new_tokens=7,
        stop_sequences=["a", "b"],
        seed=2**64 - 1,
        preserve_input_text=False,
        top_k=0,
        exponential_decay_length_penalty=penalty,
    )
    _, params = runtime.log.calls[-1]
    assert (params.max_new_tokens, params.seed, params.top_k) == (7, 2**64 - 1, 0)
    assert params.stop_sequences == ("a", "b")
    assert params.preserve_input_text is False
    assert params.exponential_decay_length_penalty == (2, 1.5)
    assert params.temperature is None


def test_beams_and_other_appended_parameters_reach_the_model(stubs, runtime):
    given = {"min_p": 0.1, "num_beams": 3, "length_penalty": -1.0, "early_stopping": False}
    generate(stubs, text="a", no_repeat_ngram_size=2, **given)
    _, params = runtime.log.calls[-1]
    assert {name: getattr(params, name) for name in given} == given
    assert params.no_repeat_ngram_size == 2


def test_metadata_says_on_whose_behalf_the_model_is_asked(stubs, runtime):
    who = (*MODEL, ("x-luthier-tenant", "team-a"), ("x-luthier-priority", "4"))
    generate(stubs, metadata=who, text="a")
    assert runtime.log.callers[-1] == Caller("team-a", 4)
    list(stream(stubs, metadata=who, text="a"))
    assert runtime.log.callers[-1] == Caller("team-a", 4)
    generate(stubs, text="a")
    assert runtime.log.callers[-1] == Caller()


def test_a_priority_that_is_no_number_is_refused(stubs):
    with pytest.raises(grpc.RpcError) as caught:
        generate(stubs, metadata=(*MODEL, ("x-luthier-priority", "high")), text="a")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'x-luthier-priority' must be int, got 'high'" in caught.value.details()


def test_a_length_penalty_may_start_at_the_first_token(stubs, runtime):
    penalty = {"start_index": 0, "decay_factor": 1.5}
    generate(stubs, text="x", exponential_decay_length_penalty=penalty)
    _, params = runtime.log.calls[-1]
    assert params.exponential_decay_length_penalty == (0, 1.5)


def test_a_stream_gives_one_message_per_piece(stubs):
    assert [message.generated_text for message in stream(stubs, text="a b")] == ["b", "a", ""]


def test_empty_text_is_text(stubs, runtime):
    assert generate(stubs, text="").generated_text == ""
    assert runtime.log.calls[-1][0] == ""


def test_tokens_are_counted(stubs):
    request = stubs.request("TokenizationTaskPredict", text="a b")
    result = stubs.inference.TokenizationTaskPredict(request, metadata=MODEL)
    assert result.token_count == 2


@pytest.mark.parametrize(
    ("metadata", "fields", "code", "word", "message"),
    [
        ((), {}, grpc.StatusCode.INVALID_ARGUMENT, "invalid_input", "mm-model-id"),
        ((("mm-model-id", "nope"),), {}, grpc.StatusCode.NOT_FOUND, "model_not_found", "'nope'"),
        (
            (("mm-model-id", "../echo"),),
            {},
            grpc.StatusCode.INVALID_ARGUMENT,
            "name_not_allowed",
            "'../echo'",
        ),
        (
            (("mm-model-id", "x" * 5000),),
            {},
            grpc.StatusCode.INVALID_ARGUMENT,
            "name_not_allowed",
            "5000 characters",
        ),
        (
            MODEL,
            {"max_new_tokens": 1, "min_new_tokens": 2},
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_input",
            "Max new tokens needs to be bigger than min new tokens",
        ),
        (
            MODEL,
            {"decoding_method": "BEAM"},
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_input",
            "not in valid decoding methods",
        ),
        (
            MODEL,
            {"top_p": float("nan")},
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_input",
            "top_p",
        ),
        (
            MODEL,
            {"max_new_tokens": 2**62},
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_input",
            "at most",
        ),
    ],
)
@pytest.mark.parametrize("call", [generate, lambda *args, **kwargs: list(stream(*args, **kwargs))])
def test_a_wrong_request_is_refused_with_its_code_in_the_trailer(
    stubs, call, metadata, fields, code, word, message
):
    with pytest.raises(grpc.RpcError) as caught:
        call(stubs, metadata=metadata, text="x", **fields)
    assert caught.value.code() is code
    assert message in caught.value.details()
    assert dict(caught.value.trailing_metadata())["luthier-error-code"] == word


def test_a_foreign_error_keeps_its_message_inside(stubs):
    with pytest.raises(grpc.RpcError) as caught:
        generate(stubs, text="crash now")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "passwd" not in caught.value.details()
    assert dict(caught.value.trailing_metadata())["luthier-error-id"] in caught.value.details()


def test_a_row_that_fails_ends_its_stream_after_what_it_gave(stubs):
    pieces = []
    with pytest.raises(grpc.RpcError, match="the row failed"):
        for message in stream(stubs, text="broken now"):
            pieces.append(message.generated_text)
    assert pieces == ["now"] or pieces == ["broken"] or len(pieces) == 1


def test_bytes_that_are_no_message_are_the_callers_fault(runtime):
    with runtime.channel() as channel:
        call = channel.unary_unary("/caikit.runtime.Nlp.NlpService/TextGenerationTaskPredict")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", metadata=MODEL)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_rpc_is_unimplemented(runtime):
    with runtime.channel() as channel:
        call = channel.unary_unary("/caikit.runtime.Nlp.NlpService/EmbeddingTaskPredict")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_deadline_is_kept_and_frees_the_row(stubs, runtime):
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(stubs, text="slow", timeout=0.3))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5
    runtime.wait_until_idle()


def test_a_client_that_cancels_frees_its_row(stubs, runtime):
    call = stream(stubs, text="slow")
    next(call)
    assert runtime.log.num_running == 1
    call.cancel()
    runtime.wait_until_idle()


def test_a_unary_call_that_is_cancelled_frees_its_row(stubs, runtime):
    request = stubs.request("TextGenerationTaskPredict", text="slow")
    future = stubs.inference.TextGenerationTaskPredict.future(request, metadata=MODEL)
    deadline = time.monotonic() + 60
    while not runtime.log.num_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    future.cancel()
    runtime.wait_until_idle()


async def test_many_streams_need_no_thread_each(stubs, runtime):
    request = stubs.request("ServerStreamingTextGenerationTaskPredict", text="slow")
    async with grpc.aio.insecure_channel(runtime.grpc_address) as channel:
        rpc = stubs.packages.inference.stub_class(channel).ServerStreamingTextGenerationTaskPredict
        before = threading.active_count()
        calls = [rpc(request, metadata=MODEL) for _ in range(100)]
        for call in calls:
            await call.read()
        assert runtime.log.num_running == 100
        assert threading.active_count() - before < 20
        for call in calls:
            call.cancel()
    runtime.wait_until_idle()


def test_models_and_versions_are_told(stubs):
    models = stubs.info.GetModelsInfo(ModelInfoRequest().to_proto()).models
    assert {"echo", "other"} <= {model.name for model in models}
    versions = stubs.info.GetRuntimeInfo(RuntimeInfoRequest().to_proto())
    assert versions.python_packages["caikit"] == "0.29.0"
    with pytest.raises(grpc.RpcError, match="'nope'"):
        stubs.info.GetModelsInfo(ModelInfoRequest(["nope"]).to_proto())


def test_a_model_is_deployed_used_and_undeployed(stubs, runtime):
    request = DeployModelRequest.get_proto_class()(model_id="fresh")
    request.model_files.add(filename="config.yml", data=b"module_id: m")
    assert stubs.models.DeployModel(request).name == "fresh"
    assert generate(stubs, metadata=(("mm-model-id", "fresh"),), text="a b").generated_text == "ba"
    stubs.models.UndeployModel(UndeployModelRequest("fresh").to_proto())
    with pytest.raises(grpc.RpcError) as caught:
        generate(stubs, metadata=(("mm-model-id", "fresh"),), text="a")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["../../pwn", "/tmp/pwn", "x\0"])
def test_a_deployment_never_leaves_the_folder(stubs, runtime, name):
    request = DeployModelRequest.get_proto_class()(model_id="fresh")
    request.model_files.add(filename=name, data=b"x")
    with pytest.raises(grpc.RpcError) as caught:
        stubs.models.DeployModel(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        stubs.models.UndeployModel(UndeployModelRequest(name).to_proto())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not (runtime.models_dir / "fresh").exists()


def test_trainings_that_nobody_knows_are_not_found(stubs):
    request = TrainingInfoRequest("nobody").to_proto()
    for rpc in (stubs.trainings.GetTrainingStatus, stubs.trainings.CancelTraining):
        with pytest.raises(grpc.RpcError) as caught:
            rpc(request)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "Unknown training_id" in caught.value.details()


def test_a_training_without_data_is_refused_at_once(stubs):
    request = stubs.request(
        "TextGenerationTaskPeftPromptTuningTrain", model_name="m", parameters={"base_model": "b"}
    )
    with pytest.raises(grpc.RpcError) as caught:
        stubs.training.TextGenerationTaskPeftPromptTuningTrain(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "train_stream" in caught.value.details()


DATA = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]


def train_request(stubs: Stubs, model_name: str = "refused", data=DATA, source=None, **parameters):
    """A request that would be accepted but for what is given."""
    given = {"base_model": "good", "tuning_config": {"num_virtual_tokens": 4}, **parameters}
    given["train_stream"] = source or {"jsondata": {"data": data}}
    rpc = "TextGenerationTaskPeftPromptTuningTrain"
    return stubs.request(rpc, model_name=model_name, parameters=given)


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"data": []}, "INVALID_ARGUMENT", "train_stream cannot be empty"),
        ({"data": [*DATA, {"input": "x"}]}, "INVALID_ARGUMENT", "row 3"),
        ({"verbalizer": "no placeholder"}, "INVALID_ARGUMENT", "placeholder"),
        ({"verbalizer": "{{nope}}"}, "INVALID_ARGUMENT", "nope"),
        ({"base_model": "unknown"}, "NOT_FOUND", "ALLOW_DOWNLOADS"),
        ({"base_model": "../good"}, "INVALID_ARGUMENT", "../good"),
        (
            {"tuning_config": {"num_virtual_tokens": 4, "prompt_tuning_init_method": "TEXT"}},
            "INVALID_ARGUMENT",
            "prompt_tuning_init_text",
        ),
        ({"tuning_type": "LORA"}, "UNIMPLEMENTED", "LORA tuning type not supported!"),
        ({"num_epochs": -1}, "INVALID_ARGUMENT", "num_epochs"),
        ({"learning_rate": float("nan")}, "INVALID_ARGUMENT", "learning_rate"),
        ({"learning_rate": float("inf")}, "INVALID_ARGUMENT", "learning_rate"),
        ({"batch_size": 2**62}, "INVALID_ARGUMENT", "batch_size"),
        ({"model_name": "../x"}, "INVALID_ARGUMENT", "../x"),
        ({"model_name": "/abs"}, "INVALID_ARGUMENT", "/abs"),
        ({"model_name": "x\0"}, "INVALID_ARGUMENT", "model_name"),
        ({"model_name": "x" * 10_000}, "INVALID_ARGUMENT", "10000 characters"),
        ({"source": {"file": {"filename": "/etc/x.jsonl"}}}, "INVALID_ARGUMENT", "data_roots"),
        ({"source": {"s3files": {"files": ["x"]}}}, "UNIMPLEMENTED", "S3"),
    ],
)
def test_a_training_that_cannot_succeed_is_refused_at_once(stubs, runtime, changes, code, message):
    with pytest.raises(grpc.RpcError) as caught:
        stubs.training.TextGenerationTaskPeftPromptTuningTrain(train_request(stubs, **changes))
    assert caught.value.code().name == code
    assert message in caught.value.details()
    assert not (runtime.models_dir / "refused").exists()


def test_a_training_is_started_followed_and_cancelled(stubs):
    request = train_request(stubs, model_name="stopped", base_model="slow")
    job = stubs.training.TextGenerationTaskPeftPromptTuningTrain(request)
    assert job.model_name == "stopped"
    info = TrainingInfoRequest(job.training_id).to_proto()
    assert stubs.trainings.GetTrainingStatus(info).state in (1, 2)
    assert stubs.trainings.CancelTraining(info).state == 4
    status = stubs.trainings.GetTrainingStatus(info)
    assert status.state == 4 and status.reasons
    assert status.completion_timestamp.seconds >= status.submission_timestamp.seconds > 0


def test_a_text_is_classified(stubs, runtime):
    runtime.add_model("sorter")
    request = stubs.request("TextClassificationTaskPredict", text="ham spam")
    classify = stubs.inference.TextClassificationTaskPredict
    answer = classify(request, metadata=(("mm-model-id", "sorter"),), timeout=60)
    assert [(each.label, each.score) for each in answer.results] == [
        ("spam", 1 / 2),
        ("ham", 1 / 3),
    ]
    with pytest.raises(grpc.RpcError) as refused:
        generate(stubs, metadata=(("mm-model-id", "sorter"),), text="a")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as refused:
        classify(request, metadata=MODEL, timeout=60)
    assert "tells no classes apart" in refused.value.details()
