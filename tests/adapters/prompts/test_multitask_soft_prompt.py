import pytest
import torch

from luthier.adapters.prompts.multitask_soft_prompt import MultitaskSoftPrompt
from luthier.errors import InvalidInputError

TASKS, ROWS, RANK, HIDDEN = 3, 6, 2, 4


def _tensors(*, tasks=TASKS, rows=ROWS, rank=RANK, hidden=HIDDEN):
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(rows, hidden, generator=generator),
        torch.randn(tasks, rows, rank, generator=generator),
        torch.randn(tasks, rank, hidden, generator=generator),
    )


def _adapter(**options):
    options = {"kind": "causal", "places": ("decoder",), **options}
    return MultitaskSoftPrompt(*_tensors(), **options)


@pytest.mark.parametrize("task_id", range(TASKS))
def test_the_prompt_is_the_shared_one_times_the_product_of_its_task(task_id):
    prompt, columns, rows = _tensors()
    expected = torch.empty(ROWS, HIDDEN)
    for p in range(ROWS):
        for d in range(HIDDEN):
            factor = sum(columns[task_id, p, r] * rows[task_id, r, d] for r in range(RANK))
            expected[p, d] = prompt[p, d] * factor
    torch.testing.assert_close(_adapter(task_id=task_id).soft_prompt().decoder, expected)


def test_encoder_and_decoder_share_the_rows_out():
    adapter = _adapter(kind="seq2seq", places=("encoder", "decoder"))
    tensors = adapter.soft_prompt()
    whole = torch.cat((tensors.encoder, tensors.decoder))
    torch.testing.assert_close(whole, _adapter().soft_prompt().decoder)
    assert adapter.num_virtual_tokens == 3


def test_gradients_reach_all_three_parameters():
    adapter = _adapter(task_id=1)
    adapter.soft_prompt().decoder.square().sum().backward()
    gradients = {name: p.grad for name, p in adapter.named_parameters()}
    assert set(gradients) == {"prompt_embeddings", "prefix_task_cols", "prefix_task_rows"}
    assert gradients["prompt_embeddings"].abs().sum() > 0
    assert gradients["prefix_task_cols"][1].abs().sum() > 0
    assert gradients["prefix_task_cols"][0].abs().sum() == 0


def test_the_hash_knows_the_task_and_every_factor():
    hashes = {_adapter(task_id=task).content_hash() for task in range(TASKS)}
    changed = _adapter()
    with torch.no_grad():
        changed.prefix_task_rows[2, 1, 3] += 1
    hashes.add(changed.content_hash())
    assert len(hashes) == 4


def test_a_copy_in_another_dtype_keeps_the_task():
    cpu = torch.device("cpu")
    adapter = _adapter(task_id=2)
    half = adapter.to(device=cpu, dtype=torch.bfloat16)
    assert half.task_id == 2
    assert {p.dtype for _, p in half.named_parameters()} == {torch.bfloat16}
    assert adapter.to(device=cpu, dtype=torch.float32) is adapter


@pytest.mark.parametrize(
    "change",
    [
        lambda p, c, r: (p[:-1], c, r),
        lambda p, c, r: (p, c[:, :-1], r),
        lambda p, c, r: (p, c[:2], r),
        lambda p, c, r: (p, c[..., :1], r),
        lambda p, c, r: (p, c, r[..., :-1]),
        lambda p, c, r: (p, c[0], r[0]),
        lambda p, c, r: (p, c[:0], r[:0]),
        lambda p, c, r: (p, c[..., :0], r[:, :0]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change):
    with pytest.raises(InvalidInputError):
        MultitaskSoftPrompt(*change(*_tensors()), kind="causal", places=("decoder",))


@pytest.mark.parametrize("task_id", [-1, TASKS])
def test_a_task_that_does_not_exist_is_refused(task_id):
    with pytest.raises(InvalidInputError, match="there are 3 tasks"):
        _adapter(task_id=task_id)
