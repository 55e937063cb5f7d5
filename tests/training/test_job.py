"""What a job is unless it says otherwise."""

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.training.job import TuningJob


def test_a_job_needs_an_adapter_records_and_options_only(tiny_causal_base: BaseModel) -> None:
    adapter = SoftPrompt(tiny_causal_base.embedding_weight[:2], kind="causal", places=("decoder",))
    job = TuningJob(adapter, [], TrainingOptions())
    assert not job.should_stop()
    assert job.run_folder is job.resume_from is job.validation is None
    assert job.callbacks == ()
