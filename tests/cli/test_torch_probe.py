import torch

from luthier.cli.torch_probe import probe


def test_probe_measures_and_advises() -> None:
    facts = probe()
    assert facts["torch"] == torch.__version__
    is_faster = facts["bf16_speed_of_fp32"] > 1
    assert facts["advised_dtype"] == ("bfloat16" if is_faster else "float32")
