"""The wire: caikit's messages and services, made from our modules, with frozen field numbers.

caikit numbers a request's fields in the order in which it meets them. ``wire_numbers.json`` holds
the numbers that were handed out once; a field that is not in it gets the next free number of its
message, so that adding one never renumbers another. ``scripts/render_protos.py`` writes that file
and ``protos/``.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from types import SimpleNamespace
from typing import Any

import alog
from caikit.interfaces.runtime.data_model import TrainingInfoRequest, TrainingStatusResponse
from caikit.runtime.service_factory import ServicePackage, ServicePackageFactory
from caikit.runtime.service_generation.compatibility_checker import ApiFieldNames
from py_to_proto.json_to_service import GRPCService, json_to_service

from luthier.modules.environment import configure_caikit

log = alog.use_channel(__name__)

#: The protobuf package of the services that caikit-nlp's clients know.
WIRE_PACKAGE = "caikit.runtime.Nlp"

_lock = threading.Lock()


@dataclass(frozen=True)
class ServicePackages:
    """caikit's generated services; each holds messages, descriptor and registration function.

    Args:
        inference: ``caikit.runtime.Nlp.NlpService``.
        training: ``caikit.runtime.Nlp.NlpTrainingService``.
        training_management: ``caikit.runtime.training.TrainingManagement``.
        model_management: ``caikit.runtime.models.ModelManagement``.
        info: ``caikit.runtime.info.InfoService``.
        training_control: ``luthier.TrainingControl``, which caikit has not.
    """

    inference: ServicePackage
    training: ServicePackage
    training_management: ServicePackage
    model_management: ServicePackage
    info: ServicePackage
    training_control: GRPCService


def service_packages() -> ServicePackages:
    """Make the services, once per process; later calls return the same objects. Thread-safe.

    Hands caikit the names of this process's config, imports the modules and pins the field
    numbers.

    Returns:
        The five packages.
    """
    with _lock:
        return _make_service_packages()


@functools.cache
def _make_service_packages() -> ServicePackages:
    configure_caikit()
    # The import registers the modules with caikit, after which their signatures are the API.
    import luthier.modules  # noqa: PLC0415, F401

    ApiFieldNames().service_pb2_modules = [_as_pb2_module(frozen_numbers())]
    kinds = ServicePackageFactory.ServiceType
    make = ServicePackageFactory.get_service_package
    with _without_task_order_warning():
        packages = ServicePackages(
            inference=make(kinds.INFERENCE),
            training=make(kinds.TRAINING),
            training_management=make(kinds.TRAINING_MANAGEMENT),
            model_management=make(kinds.MODEL_MANAGEMENT),
            info=make(kinds.INFO),
            training_control=_training_control(),
        )
    log.debug("services are made: %s", packages.inference.descriptor.full_name)
    return packages


def _training_control() -> GRPCService:
    """A service of our own with the messages of caikit's."""
    resume = {
        "name": "ResumeTraining",
        "input_type": TrainingInfoRequest.get_proto_class().DESCRIPTOR.full_name,
        "output_type": TrainingStatusResponse.get_proto_class().DESCRIPTOR.full_name,
    }
    made: GRPCService = json_to_service(
        name="TrainingControl", package="luthier", json_service_def={"service": {"rpcs": [resume]}}
    )
    return made


def frozen_numbers() -> dict[str, dict[str, int]]:
    """Message name to field name to the number it has had since it was first rendered."""
    text = resources.files("luthier.modules").joinpath("wire_numbers.json").read_text("utf-8")
    numbers: dict[str, dict[str, int]] = json.loads(text)
    return numbers


def _as_pb2_module(numbers: Mapping[str, Mapping[str, int]]) -> Any:
    """What caikit asks of a compiled proto file: a DESCRIPTOR with messages and their fields."""
    messages = {
        message: SimpleNamespace(
            fields=[SimpleNamespace(name=name, number=number) for name, number in fields.items()]
        )
        for message, fields in numbers.items()
    }
    return SimpleNamespace(DESCRIPTOR=SimpleNamespace(message_types_by_name=messages))


@contextmanager
def _without_task_order_warning() -> Iterator[None]:
    """Drop caikit's warning that the first task names the train rpc: we rely on exactly that."""
    names_log = logging.getLogger("RNTM-NAMES")
    level = names_log.level
    names_log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        names_log.setLevel(level)
