"""The gRPC door with nothing but grpcio: services and messages are asked from the server itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

INFERENCE = "caikit.runtime.Nlp.NlpService"
TRAINING = "caikit.runtime.Nlp.NlpTrainingService"
MANAGEMENT = "caikit.runtime.training.TrainingManagement"


class GrpcApi:
    """Tunes and generates over one channel.

    Args:
        address: ``host:port`` of the server.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self._channel))

    def train_prompt(
        self, model_name: str, rows: Sequence[Mapping[str, str]], parameters: Mapping[str, Any]
    ) -> str:
        """Start tuning a soft prompt.

        Args:
            model_name: Name that the tuned model gets.
            rows: Records with ``input`` and ``output``.
            parameters: The other parameters of the training, by name.

        Returns:
            The training's id.
        """
        request = {
            "model_name": model_name,
            "parameters": {"train_stream": {"jsondata": {"data": list(rows)}}, **parameters},
        }
        job = self._call(TRAINING, "TextGenerationTaskPeftPromptTuningTrain", request)
        return str(job.training_id)

    def training_state(self, training_id: str) -> str:
        """QUEUED, RUNNING, COMPLETED, CANCELED or ERRORED."""
        status = self._call(MANAGEMENT, "GetTrainingStatus", {"training_id": training_id})
        states = status.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number
        return str(states[status.state].name)

    def generate(self, model_id: str, text: str, **parameters: Any) -> str:
        """Text from a model; its id travels in the metadata."""
        request = {"text": text, **parameters}
        metadata = [("mm-model-id", model_id)]
        result = self._call(INFERENCE, "TextGenerationTaskPredict", request, metadata)
        return str(result.generated_text)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(
        self,
        service: str,
        name: str,
        request: Mapping[str, Any],
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Any:
        method: MethodDescriptor = self._pool.FindServiceByName(service).methods_by_name[name]
        call = self._channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        message = ParseDict(dict(request), GetMessageClass(method.input_type)())
        return call(message, metadata=list(metadata), wait_for_ready=True, timeout=300)
