"""The parts that every command builds from a configuration: task, verifier, base and decoding."""

from collections.abc import Sequence

from eval.policy.policy import Policy
from eval.rollout.rollout import Decoding, Servers
from eval.rollout.servers import check
from eval.tasks.data import Data
from eval.tasks.registry import build_task
from eval.tasks.task import Problem, TaskError
from eval.verify.verifier import Verifier
from trainers.config.schema import Config

# of rollout.mismatch: rounding alone made means of 1e-6 in float32 and of 0.012 in bfloat16, where
# weights that were 20 steps old made 0.2 and more
BOUNDS = {"float32": 1e-3, "bfloat16": 0.05}


class Job:
    """The task of a configuration, with verifier, decoding and token limit; it loads no model."""

    def __init__(self, config: Config):
        self.config = config
        self.task = build_task({**vars(config.task), **config.task.options})
        limit = config.train.max_new_tokens or self.task.max_new_tokens
        if limit is None:
            why = "has max_new_tokens = None; give it the most tokens that an answer needs"
            remedy = "or set train.max_new_tokens"
            raise TaskError(f"task.name = {config.task.name}: {why}, {remedy}")
        self.max_new_tokens = limit
        self.rollout_tokens = config.train.rollout_tokens  # null: sized where a model is sampled
        self.servers = servers_of(config)

    def verifier(self) -> Verifier:
        """Return the verifier of the configuration; it starts its workers on first use."""
        task = self.config.task
        mode = task.verifier or self.task.verifier
        return Verifier(mode, task.verify_workers, task.verify_seconds)

    def control(self, step: int) -> list[Problem]:
        """Return the problems of this step that are judged and never trained on."""
        config = self.config
        problems = self.task.control(config.seed, step, config.surgery.control_prompts)
        if problems is None:
            why = f"task {config.task.name} has no problems that are never trained on"
            remedy = "set surgery.hold=train"
            if isinstance(self.task, Data):
                remedy = "set task.held_out to the number of problems to set aside"
            raise TaskError(f"surgery.hold = control: {why}; {remedy}")
        return problems

    def base_path(self) -> str:
        """Return the folder or hub id of the model that the run begins with."""
        return self.path_of(self.config.model.path)

    def path_of(self, name: str) -> str:
        """Return a model's folder or hub id; `base` is the task's own, made on first use."""
        return self.task.base_model() if name == "base" else name

    @property
    def eval_tokens(self) -> int:
        """The tokens of the longest answer in an evaluation."""
        return self.config.eval.max_new_tokens or self.max_new_tokens

    def decoding(
        self, temperature: float, top_p: float, max_new_tokens: int, features: bool = False
    ) -> Decoding:
        """Return the decoding; temperature and top_p differ between training and evaluation."""
        train = self.config.train
        return Decoding(
            max_new_tokens,
            temperature,
            top_p,
            self.rollout_tokens or 0,
            train.rollouts,
            features,
            train.cuda_graph,
            self.servers,
        )

    def check_servers(self, policy: Policy, problems: Sequence[Problem]) -> None:
        """Refuse servers that cannot draw the answers of this policy to these problems."""
        if self.servers:
            check(self.servers, policy, self.longest(policy, [x.prompt for x in problems]))

    def longest(self, policy: Policy, prompts: Sequence[str]) -> int:
        """Return the tokens of the longest of these prompts with the longest answer."""
        answer = max(self.max_new_tokens, self.eval_tokens)
        return max(map(len, policy.encode(prompts))) + answer


def servers_of(config: Config) -> Servers | None:
    """Return the servers of the sampler `vllm`; None with any other sampler."""
    options = config.rollout
    if config.train.rollouts != "vllm":
        return None
    bound = options.mismatch or BOUNDS[config.model.dtype]
    return Servers(tuple(options.urls), options.timeout, bound)
