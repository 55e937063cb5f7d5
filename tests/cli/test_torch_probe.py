import torch

from luthier.cli.torch_probe import probe


def test_probe_measures_this_machine() -> None:
    facts = probe()
    assert facts["torch"] == torch.__version__
    assert facts["bf16_speed_of_fp32"] > 0
    assert isinstance(facts["is_bf16_faster"], bool)
