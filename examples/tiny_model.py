"""A tiny language model, made on the spot: for examples that show steps, not quality.

python examples/tiny_model.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = [
    "Message: my package never arrived. Intent: delivery",
    "Message: I was charged twice, please refund me. Intent: payment",
    "Message: the screen stays black. Intent: repair",
    "Message: how do I reset my password? Intent: account",
] * 8


def make_tiny_model(folder: Path) -> Path:
    """Save a Llama-type model with 2 layers and a byte-level tokenizer; its weights are random.

    Args:
        folder: Made, and filled in Hugging Face format.

    Returns:
        The folder.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    torch.manual_seed(11)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(wrapped),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            initializer_range=0.2,
        )
    )
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(make_tiny_model(Path(sys.argv[1])))
