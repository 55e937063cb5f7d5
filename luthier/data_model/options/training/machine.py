"""Where a training computes: device, processes, number format of the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.options.setting import option

#: caikit-nlp's word for "choose a device".
DETECT_DEVICE = "__DETECT__"
MIXED_PRECISION_WORDS = ("off", "bfloat16", "float16")


@dataclass(frozen=True)
class MachineOptions:
    """Devices and processes, and how they compute."""

    device: str | None = option(
        None,
        "text",
        "Where to train: cpu, cuda, cuda:1; none chooses.",
        is_optional=True,
        is_bookkeeping=True,
    )
    num_processes: int = option(
        1,
        "int",
        "Processes that share the rows of each update, a GPU each where there are some; they learn "
        "what one would. Under torchrun its own number counts.",
        minimum=1,
        limit="max_processes",
        is_bookkeeping=True,
    )
    use_fsdp: bool = option(
        False,
        "bool",
        "Several processes keep a share each of what full fine-tuning learns, its gradients and "
        "the optimizer's state, and borrow the others' layer by layer. Rows are padded then.",
        is_bookkeeping=True,
    )
    compile_model: bool = option(
        False,
        "bool",
        "Compile the model's layers: pays for itself in long trainings on a GPU. Rows are padded "
        "then, because each packed batch would be compiled anew.",
        is_bookkeeping=True,
    )
    mixed_precision: str = option(
        "off",
        "choice",
        "Number format that layers compute in where rounding harms little, while weights stay as "
        "they are; float16 scales the loss. On a CPU, one that is not measured to be faster is "
        "off.",
        choices=MIXED_PRECISION_WORDS,
    )

    @property
    def is_device_given(self) -> bool:
        """False where the device is to be chosen for the caller."""
        return self.device not in (None, "", DETECT_DEVICE)
