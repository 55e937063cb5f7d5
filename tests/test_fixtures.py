import socket

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

PROMPTS = [
    "@foo what a cute dog!",
    "My package never arrived",
    "Hello",
    "Ünïcode ☕ 日本",
    "How do I reset my password?",
    "Message: a",
    "Message: b",
    "0123",
]


def _greedy_texts(model, tokenizer):
    texts = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        texts.append(tokenizer.decode(ids[0, start:]))
    return texts


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_the_text_of_a_tiny_model_depends_on_the_prompt(kind, tiny_base_models_dir):
    folder = tiny_base_models_dir / f"tiny-{kind}"
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    texts = _greedy_texts(model, AutoTokenizer.from_pretrained(folder))
    assert len(set(texts)) == len(PROMPTS)


def test_any_text_survives_the_tiny_tokenizer(tiny_causal_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_dir)
    for prompt in PROMPTS:
        assert tokenizer.decode(tokenizer(prompt)["input_ids"]) == prompt


def test_reaching_for_the_network_fails_the_test():
    with pytest.raises(pytest.fail.Exception):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    with pytest.raises(pytest.fail.Exception):
        socket.getaddrinfo("huggingface.co", 443)
