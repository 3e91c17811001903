import torch

from eval.policy.logprobs import completion_logprobs
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from trainers.engine.batches import Work, micro_batches


def test_merged_rows_have_the_same_gradient(base, twin):
    problems = twin.training(0, 0, 12)
    rollout = sample(base, [x.prompt for x in problems], 16, Decoding(4), seed=0)
    advantages = torch.randn(12, 16, generator=torch.Generator().manual_seed(0)).double()
    advantages[3] = 0

    def gradient(batches, weights):
        base.model.zero_grad()
        for batch, weight in zip(batches, weights, strict=True):
            (completion_logprobs(base.model, batch).sum(1) @ weight).backward()
        return torch.cat([p.grad.flatten() for p in base.model.parameters()])

    rows = [(rollout.prompts[i // 16], rollout.completions[i]) for i in range(192)]
    from eval.policy.logprobs import pad_batch

    plain = pad_batch([x[0] for x in rows], [x[1] for x in rows], base.pad_id, "cpu")
    expected = gradient([plain], [advantages.flatten().float()])
    for budget in (10**6, 100, 1):
        batches, weights = micro_batches(rollout, advantages, Work(budget, base.pad_id, "cpu"))
        assert all(b.input_ids.numel() <= budget or len(b.input_ids) == 1 for b in batches)
        found = gradient(batches, weights)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    work = Work(100, base.pad_id, "cpu")
    for weights in (advantages, advantages[..., None].expand(-1, -1, 4)):  # a row each
        rows, _ = micro_batches(rollout, weights, work, linear=False)
        assert sum(len(b.input_ids) for b in rows) == 11 * 16
    kept = sum(len(b.input_ids) for b in batches)
    assert kept < 100  # of 192: most answers repeat


def test_weights_of_tokens_are_summed_and_cut_with_their_rows(base, twin):
    problems = twin.training(0, 0, 12)
    rollout = sample(base, [x.prompt for x in problems], 16, Decoding(4), seed=0)
    columns = int(rollout.lengths.max())
    weights = torch.randn(12, 16, columns, generator=torch.Generator().manual_seed(0)).double()
    total = torch.zeros(columns, dtype=torch.float64)
    work = Work(60, base.pad_id, "cpu")
    for batch, sums in zip(*micro_batches(rollout, weights, work), strict=True):
        assert sums.shape == batch.completion_mask.shape
        total[: sums.shape[1]] += (sums * batch.completion_mask).sum(0)
    ended = torch.arange(columns) < rollout.lengths[:, None]
    assert torch.allclose(total, (weights.view(-1, columns) * ended).sum(0), atol=1e-5)
