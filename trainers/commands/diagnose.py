"""Measure a model's interference over many prompts, part by part, on all ranks, resumably.

The first pass samples a part of the prompts at a time, judges the answers, and keeps for each
prompt its answers and the two sums of last-layer features that `surgery.interference` needs. With
`ghost` one more pass follows for each direction: it computes the gradient J_b over some prompts of
one half, then the product of J_b with every answer of the other half. Memory holds one direction at
a time, and no activations between the passes.

On-policy means one distribution: all gradients are gradients of log pi under the sampled
distribution, at its temperature and cut at its top_p. Only under this distribution does the score
have mean 0, as every baseline requires, and does g_i estimate the gradient of the reported success
rate.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from eval.policy.logprobs import Likelihood, check_chunks
from eval.policy.policy import Policy, check_template, load_policy
from eval.policy.streams import derive_seed
from eval.progress import progress
from eval.records import Record
from eval.rollout.rollout import Rollout
from eval.rollout.sample import sample
from eval.scores.evaluate import record
from eval.scores.passk import ladder
from eval.tasks.task import Problem, TaskError, digest
from eval.verify.verifier import Verifier
from surgery.interference import (
    EVERYTHING,
    PASS_1,
    WIDEST,
    FeatureSums,
    Group,
    Level,
    Measured,
    ProbeSums,
    advantage_table,
    product,
    shells,
)
from trainers.commands.diagnosis_folder import Folder, Request
from trainers.config.schema import Config
from trainers.engine.adapter import make_trainable
from trainers.engine.batches import Work, merged, micro_batches
from trainers.engine.hosts import base_path, check_inputs, check_weights
from trainers.engine.ranks import Ranks, share
from trainers.engine.sync import sync_of
from trainers.job import Job
from trainers.measure import ghost
from trainers.measure.probe import check_coverage

PART = 64  # prompts between two writes


NEGLIGIBLE = 1e-9  # a direction with a smaller share of the absolute weights counts as 0


class Diagnosis:
    """The measurement of a model: its problems, its policy, and the passes over them."""

    def __init__(self, config: Config, folder: Folder | None):
        """Draw the problems; only rank 0 has a `folder`, and shares its contents."""
        self.config, self.options, self.ranks = config, config.diagnose, Ranks()
        self.folder = folder
        self.job = Job(config)
        drawn = self.job.task.training(self.options.seed, 0, self.options.prompts)
        self.problems: list[Problem] = list({x.id: x for x in drawn}.values())  # each once
        self.k = self.options.k or self.options.samples
        self.parts = range(0, len(self.problems), PART)
        self._policy: Policy | None = None
        check_inputs(config, digest(self.problems))
        if folder:
            self._check_records(folder)

    def _check_records(self, folder: Folder) -> None:
        """Refuse a folder with records of other problems: data may change under the same name."""
        for start in filter(folder.has_part, self.parts):
            for r, x in zip(folder.records(start), self.problems[start:], strict=False):
                if (r["id"], r["prompt"], r["gold"]) != (x.id, x.prompt, x.gold):
                    why = f"{folder.path} holds another one in its place; choose another --out"
                    raise TaskError(f"problem {x.id!r:.80}: {why}")

    @property
    def policy(self) -> Policy:
        """Return the policy, which all ranks load together on first use.

        A finished diagnosis is printed without loading the policy.
        """
        if self._policy is None:
            model = self.config.model
            path = base_path(self.job)
            self._policy = load_policy(path, model.dtype, model.attention)
            check_weights(self.config, self._policy)
            make_trainable(self._policy, self.config)
            self._policy.model.to(self.ranks.device)
            if self.config.train.logprob_chunk:
                check_chunks(self._policy)
            if self.options.measure == "ghost":  # refuse an unfit model before the sampling
                check_coverage(self._policy.model, self.config.surgery)
                ghost.check(self._policy.model, self.config.surgery.modules)
        return self._policy

    def run(self) -> dict[str, Measured]:
        """Measure what is not on disk yet; return all measures by name, the decisive one last."""
        features = self._sample_all()
        if self.options.measure == "last_layer":
            return {"last_layer": features}
        return {"last_layer": features, "ghost": self._probe_all(features)}

    def records(self) -> list[Record]:
        """Return one record per prompt, in order, on all ranks."""
        return [r for start in self.parts for r in self._records(start)]

    def _records(self, start: int) -> list[Record]:
        return share(self.folder and self.folder.records(start))

    def _mine(self, start: int) -> list[int]:
        """Return this rank's prompts of a part, in pairs: each rank gets as many of either half."""
        stop = min(start + PART, len(self.problems))
        return [i for i in range(start, stop) if i // 2 % self.ranks.world == self.ranks.rank]

    def _progress(self, total: int, done: int, name: str) -> tqdm:
        return progress(total, done, name, quiet=self.folder is None)

    # -- the first pass ---------------------------------------------------------------------------

    def _sample_all(self) -> FeatureSums:
        n, folder = self.options.samples, self.folder
        missing = share(folder and [i for i in self.parts if not folder.has_part(i)])
        verifier = self.job.verifier()
        if missing:
            verifier.try_out(self.problems[0].gold)
            check_template(base_path(self.job), [x.prompt for x in self.problems])
        counts = [r["c"] for i in self.parts if i not in missing for r in self._records(i)]
        policy = self._drawn_from() if missing else None  # also on a rank that has no prompts
        with verifier, self._progress(len(self.problems), len(counts), "sampling") as bar:
            for start in missing:
                mine = self._mine(start)
                local = self._sample(policy, mine, verifier) if policy and mine else []
                size = len(self.problems[start : start + PART])
                rows = self.ranks.list_in_place([i - start for i in mine], local, size)
                if folder:
                    records, sums = [x[1] for x in rows], torch.stack([x[2] for x in rows])
                    folder.write_part(start, records, sums)
                counts += [x[1]["c"] for x in rows]
                bar.set_postfix(_figures(torch.tensor(counts), n), refresh=False)
                bar.update(len(rows))
        all_counts = torch.tensor([r["c"] for r in self.records()])
        return FeatureSums(
            all_counts, n, share(folder and torch.cat([folder.sums(i) for i in self.parts]))
        )

    def _drawn_from(self) -> Policy:
        """Return the policy; servers that draw for it have its weights then."""
        policy, sync = self.policy, sync_of(self.config, self.ranks)
        if sync:
            if self.folder:
                self.job.check_servers(policy, self.problems)
            sync(policy, 0)
        return policy

    def _sample(
        self, policy: Policy, mine: Sequence[int], verifier: Verifier
    ) -> list[tuple[int, Record, Tensor]]:
        """Return (position, record, [2, width] sums) for each of these prompts."""
        options, n = self.options, self.options.samples
        problems = [self.problems[i] for i in mine]
        rollout = sample(
            policy,
            [x.prompt for x in problems],
            n,
            self.job.decoding(
                options.temperature, options.top_p, self.job.max_new_tokens, features=True
            ),
            derive_seed("diagnose", options.seed),
            mine,
        )
        assert rollout.features is not None
        judged = verifier.judge(rollout.texts, [x.gold for x in problems for _ in range(n)])
        lengths, truncated = rollout.lengths.tolist(), rollout.truncated.tolist()
        samples = []
        for place, (i, problem) in enumerate(zip(mine, problems, strict=True)):
            rows = slice(place * n, (place + 1) * n)
            kept = record(
                problem, rollout.texts[rows], judged[rows], lengths[rows], truncated[rows]
            )
            kept["tokens"] = (rollout.prompts[place], rollout.completions[rows])
            right = torch.tensor([verdict is True for verdict, _ in judged[rows]])
            u = rollout.features[rows].cpu()
            samples.append((i, kept, torch.stack([u[right].sum(0), u[~right].sum(0)])))
        return samples

    # -- the passes of ghost ----------------------------------------------------------------------

    def _probe_all(self, features: FeatureSums) -> ProbeSums:
        counts, n = features.counts, features.n
        halves = torch.arange(len(counts)) % 2
        wanted = requests(self.k, n)
        folder = self.folder
        done = share(folder and [folder.probe(x) for x in wanted])
        known = [x is not None for x in done]
        cosine = _cosine(features, self.k)
        probes = {}
        with self._progress(len(wanted), sum(known), "ghost") as bar:
            for request, content, is_known in zip(wanted, done, known, strict=True):
                if not is_known:
                    content = {"probe": self._directed(features, halves, *request)}
                    if folder:
                        folder.write_probe(request, content)
                    bar.set_postfix({"last layer's cos(J_k,J_1)": cosine}, refresh=False)
                    bar.update()
                assert content is not None
                probes[request] = content["probe"]
        return ProbeSums(counts, n, halves, probes)

    def _directed(
        self, features: FeatureSums, halves: Tensor, level: Level, group: Group
    ) -> Tensor:
        """Return the [N, 2] products of u+- with the sum of g over the group's other half."""
        counts, n = features.counts, features.n
        table = advantage_table(level, n)
        of_group = torch.isin(shells(counts, n), torch.tensor(sorted(group)))
        mixed = (counts > 0) & (counts < n)  # all other prompts have no gradient
        total = torch.zeros(len(counts), 2, dtype=torch.float64)
        size = table[counts].abs().sum(1) * mixed
        if size[of_group].sum() <= NEGLIGIBLE * size.sum():
            return total  # the weights vanish, such as those of easy prompts under a large k
        for half in (0, 1):
            v = self._direction(counts, table, of_group & mixed & (halves == half))
            chosen = mixed & (halves != half)
            for i, products in self._products(v, chosen):
                total[i] = products
        return self.ranks.reduce(total)

    def _direction(self, counts: Tensor, table: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        """Return the sum of the chosen prompts' g, over all ranks."""
        model, pattern = self.policy.model, self.config.surgery.modules
        total = ghost.zeros(model, pattern)
        for mine, rollout, right in self._rollouts(chosen):
            a = table[counts[mine]].gather(1, (~right).long())  # [prompts, n]
            batches, sums = micro_batches(rollout, a, self._work())
            ghost.gradient(model, batches, sums, self._likelihood(), pattern, total)
        return {name: self.ranks.total(x) for name, x in total.items()}

    def _products(self, v: dict[str, Tensor], chosen: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (prompt, [2] sums of its products with v over right and wrong answers)."""
        for mine, rollout, right in self._rollouts(chosen):
            values = torch.zeros(right.numel(), dtype=torch.float64)
            for rows, places in merged(rollout, torch.ones_like(right), self._work()):
                products = ghost.probe(self.policy.model, rows, v, self._likelihood()).cpu()
                for value, where in zip(products, places, strict=True):
                    values[where] = value
            for i, s, ok in zip(mine, values.view(right.shape), right, strict=True):
                yield i, torch.stack([s[ok].sum(), s[~ok].sum()])

    def _likelihood(self) -> Likelihood:
        options = self.options
        return Likelihood(options.temperature, options.top_p, self.config.train.logprob_chunk)

    def _work(self) -> Work:
        budget = self.config.train.micro_batch_tokens
        return Work(budget, self.policy.pad_id, self.ranks.device)

    def _rollouts(self, chosen: Tensor) -> Iterator[tuple[list[int], Rollout, Tensor]]:
        """Yield (prompts, their rollout, [prompts, n] verdicts) of this rank's chosen prompts.

        Each group holds as many prompts as fill a micro-batch with distinct completions.
        """
        mine, records, size = list[int](), list[Record](), 0
        for start in self.parts:
            if not chosen[start : start + PART].any():
                continue
            records_of_part = self._records(start)  # all ranks call it, also without own prompts
            for i in [i for i in self._mine(start) if chosen[i]]:
                mine.append(i)
                records.append(records_of_part[i - start])
                size += _distinct_tokens(records[-1])
                if size > self.config.train.micro_batch_tokens:
                    yield mine, *_rollout(records)
                    mine, records, size = [], [], 0
        if mine:
            yield mine, *_rollout(records)


def _distinct_tokens(record: Record) -> int:
    prompt, completions = record["tokens"]
    return sum(len(prompt) + len(x) for x in set(map(tuple, completions)))


def _rollout(records: Sequence[Record]) -> tuple[Rollout, Tensor]:
    n = records[0]["n"]
    prompts, completions = zip(*(r["tokens"] for r in records), strict=True)
    flat = [x for part in completions for x in part]
    none = torch.zeros(len(flat))
    right = torch.tensor([[v is True for v in r["verdicts"]] for r in records])
    return Rollout(list(prompts), flat, [], none.bool(), none, none, None, n), right


def requests(k: int, n: int) -> list[Request]:
    """Return the directions of ghost.

    They are J_1, and J_k by either estimator, over each shell (every filter is a sum of shells),
    and pass@m of the ladder over the widest filter.
    """
    levels = [PASS_1, ("plugin", k), ("loo", k)]
    by_shell: list[Request] = [(x, frozenset({s})) for x in levels for s in sorted(EVERYTHING)]
    return by_shell + [(("plugin", m), WIDEST) for m in ladder(k)[1:-1]]


def _figures(counts: Tensor, n: int) -> dict[str, str]:
    kind = shells(counts, n)
    hard, easy = (int((kind < 3).sum()), int((kind > 3).sum()))
    return {
        "pass@1": f"{float(counts.double().mean()) / n:.3f}",
        "easy": str(easy),
        "hard": str(hard),
    }


def _cosine(features: FeatureSums, k: int) -> str:
    a, b, c = (
        product(features, x, y, WIDEST)
        for x, y in ((("plugin", k), PASS_1), (PASS_1, PASS_1), (("plugin", k), ("plugin", k)))
    )
    return f"{a / (b * c) ** 0.5:.2f}" if min(b, c) > 0 else "–"
