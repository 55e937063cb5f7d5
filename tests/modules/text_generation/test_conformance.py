"""An adapter is served only if the engine gives what the training code gives."""

import pytest
import torch
from fixtures.train_rows import QUICK, ROWS

from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import ArtifactError
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.linear.int8_weights import multiplies_int8
from luthier.inference.options import EngineOptions
from luthier.inference.registry import engine_for
from luthier.modules import LoraTuning
from luthier.modules.text_generation.conformance import check_conformance

both_bases = pytest.mark.parametrize("name", ["tiny-causal", "tiny-seq2seq"])


@pytest.fixture
def base(here, name):
    with here.base_models.acquire(name) as loaded:
        yield loaded


class Misled:
    """An engine that serves another adapter than the one it is asked for."""

    is_rounded = False

    def __init__(self, engine, other):
        self._engine, self._other = engine, other

    def submit(self, request):
        adapter = None if request.adapter is None else self._other
        return self._engine.submit(
            GenerationRequest(request.input_ids, request.sampling, adapter=adapter)
        )


def random_lora(base, scale=0.3, seed=3):
    lora = create_lora(base.model, LoraConfig(rank=4, use_dora=True), seed=seed)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=scale, generator=torch.Generator().manual_seed(seed))
    return lora


def random_prompt(base, place="decoder"):
    rows = torch.randn(5, base.hidden_size, generator=torch.Generator().manual_seed(1))
    return SoftPrompt(rows, kind=base.kind, places=(place,))


@both_bases
def test_adapters_that_work_pass(base):
    engine = engine_for(base)
    check_conformance(base, random_lora(base), engine)
    check_conformance(base, random_prompt(base), engine)
    if base.kind == "seq2seq":
        check_conformance(base, random_prompt(base, "encoder"), engine)


@both_bases
def test_an_adapter_without_effect_is_refused(base):
    with pytest.raises(ArtifactError, match="has no effect"):
        check_conformance(
            base, create_lora(base.model, LoraConfig(rank=4), seed=1), engine_for(base)
        )


@both_bases
def test_an_adapter_that_gives_no_numbers_is_refused(base):
    prompt = random_prompt(base)
    with torch.no_grad():
        next(prompt.named_parameters())[1][2, 0] = torch.nan
    with pytest.raises(ArtifactError, match=r"no numbers|cannot be served"):
        check_conformance(base, prompt, engine_for(base))


@both_bases
def test_an_engine_that_computes_something_else_is_found(base):
    misled = Misled(engine_for(base), random_lora(base, seed=4))
    with pytest.raises(ArtifactError, match="the engine and the training code disagree"):
        check_conformance(base, random_lora(base, seed=3), misled)


@pytest.mark.skipif(not multiplies_int8(), reason="this CPU has no exact int8 products")
@pytest.mark.parametrize("name", ["tiny-causal"])
def test_rounded_weights_are_allowed_to_say_something_else(base):
    engine = BatchedEngine(base, EngineOptions(weights="int8"))
    check_conformance(base, random_lora(base), engine)
    with pytest.raises(ArtifactError, match="has no effect"):
        check_conformance(base, create_lora(base.model, LoraConfig(rank=4), seed=1), engine)
    engine.close()


@pytest.mark.parametrize("name", ["tiny-causal"])
def test_whole_weights_are_adapters_too(base):
    whole = FullWeights(base.model)
    with torch.no_grad():
        for _, parameter in whole.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    check_conformance(base, whole, engine_for(base))


def test_a_module_checks_itself(here):
    LoraTuning.train("tiny-causal", ROWS, rank=4, **QUICK).check_conformance()
    untuned = LoraTuning.train("tiny-causal", ROWS, rank=4, **(QUICK | {"num_epochs": 0}))
    with pytest.raises(ArtifactError, match="has no effect"):
        untuned.check_conformance()
