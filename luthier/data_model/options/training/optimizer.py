"""What an update does to which weights."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.options.setting import option

OPTIMIZERS = ("adamw", "adam", "adadelta", "rmsprop", "sgd", "adamw_8bit")
LOSS_FUNCTIONS = ("token_average", "sample_average")


@dataclass(frozen=True)
class OptimizerOptions:
    """From the loss over gradients to changed weights."""

    loss_function: str = option(
        "token_average",
        "choice",
        "Whether each label token of an update weighs the same, or each row.",
        choices=LOSS_FUNCTIONS,
    )
    optimizer: str = option(
        "adamw",
        "choice",
        "How gradients become updates. sgd has Nesterov's momentum, rmsprop a smoothing of 0.9; "
        "adamw_8bit needs a GPU and bitsandbytes.",
        choices=OPTIMIZERS,
        aliases=("optim",),
    )
    momentum: float = option(
        0.9, "number", "Of sgd and rmsprop; the others have none.", minimum=0, maximum=0.999999
    )
    weight_decay: float = option(
        0.01,
        "number",
        "Decay of weights; norms, biases and other vectors do not decay. Decoupled for AdamW, else "
        "added to the gradient.",
        minimum=0,
        maximum=10,
    )
    adam_beta1: float = option(
        0.9,
        "number",
        "Adam and AdamW: decay of the mean of gradients.",
        minimum=0,
        maximum=0.999999,
    )
    adam_beta2: float = option(
        0.999,
        "number",
        "Adam and AdamW: decay of the mean of squared gradients.",
        minimum=0,
        maximum=0.99999999,
    )
    adam_epsilon: float = option(
        1e-8, "number", "Keeps the division finite; SGD has none.", above=0, maximum=1
    )
    max_grad_norm: float = option(
        0.0,
        "number",
        "Gradients longer than this (Euclidean, all parameters) are scaled down to it; 0 is off.",
        minimum=0,
        maximum=1e9,
        aliases=("gradient_clip",),
    )
    freeze_layers: tuple[str, ...] = option(
        (),
        "names",
        "Parts of parameter names; what has one of them in its name is not learned.",
    )
    differential_learning_rate_layers: tuple[str, ...] = option(
        (),
        "names",
        "Parts of parameter names that get differential_learning_rate.",
    )
    differential_learning_rate: float = option(
        1e-5,
        "number",
        "Peak step size of the layers named there; same schedule.",
        above=0,
        maximum=100,
    )
