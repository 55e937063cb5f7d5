"""The network that a training begins with: its numbers, their format and what it drops."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.options.quantisation import NONE, QUANTISATIONS
from luthier.data_model.options.setting import option

TORCH_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class StartingNetworkOptions:
    """The base model as the training has it, and the weights that it begins with."""

    start_from: str | None = option(
        None,
        "text",
        "Earlier result that adapters start from instead of fresh numbers: a saved model, PEFT's "
        "folder or a checkpoint; in a request, the id of a tuned model. The optimizer begins anew.",
        is_optional=True,
        aliases=("trained_artifact",),
    )
    pretrained_weights: str | None = option(
        None,
        "text",
        "Weights that full fine-tuning starts from in place of the base model's: safetensors, a "
        "checkpoint's parameters, or what torch.save wrote, which is read without unpickling; or "
        "the folder of a whole model. In a request, the id of a tuned model, or a name below "
        "base_models_dir. What it lacks stays the base model's.",
        is_optional=True,
    )
    torch_dtype: str | None = option(
        None,
        "choice",
        "Number format of the base model; none takes the server's.",
        choices=TORCH_DTYPES,
        is_optional=True,
        aliases=("dtype",),
        is_bookkeeping=True,
    )
    quantization: str = option(
        NONE,
        "choice",
        "How the frozen weights of the base model are held: as they are, in 8 bits, or in 4 bits "
        "(nf4 or fp4, with quantised scales): QLoRA. For methods that leave them as they are.",
        choices=QUANTISATIONS,
    )
    serve_quantized: bool = option(
        False,
        "bool",
        "Whether the saved model asks for a base model that is quantised like this when it is "
        "loaded, too; else it runs on the base model as it is.",
        is_bookkeeping=True,
    )
    gradient_checkpointing: bool = option(
        False,
        "bool",
        "Compute activations twice instead of keeping them: less memory, about 1.4 times the time.",
    )
    base_dropout: bool = option(
        False,
        "bool",
        "Keep the base model's own dropout active while training.",
    )
    intermediate_dropout: float = option(
        0.0,
        "number",
        "Share that is dropped while training wherever the base model can drop something, "
        "attention included, whatever its config says there; 0 leaves that to base_dropout.",
        minimum=0,
        maximum=0.5,
    )
