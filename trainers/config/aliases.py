"""The names that other trainers give to our keys, and the nearest keys to an unknown one."""

import difflib

from trainers.config.values import KEYS, OPTIONS

# our key: its names in TRL, verl and OpenRLHF; of verl's dotted names only the end
ELSEWHERE = {
    "model.path": ("model_name_or_path", "model.path", "pretrain"),
    "model.dtype": ("bf16", "rollout.dtype", "bf16"),
    "model.attention": ("attn_implementation", "", ""),
    "model.gradient_checkpointing": ("", "enable_gradient_checkpointing", ""),
    "model.lora_rank": ("lora_r", "", ""),
    "model.lora_targets": ("lora_target_modules", "", "target_modules"),
    "task.path": ("dataset_name", "data.train_files", "prompt_data"),
    "task.subset": ("dataset_config", "", ""),
    "task.split": ("dataset_train_split", "", "prompt_split"),
    "task.eval_path": ("", "data.val_files", "eval_dataset"),
    "task.eval_split": ("dataset_test_split", "", ""),
    "task.fields.problem": ("", "data.prompt_key", "input_key"),
    "task.fields.answer": ("", "", "label_key"),
    "task.template": ("", "", "apply_chat_template"),
    "task.prompt": ("", "", "input_template"),
    "task.verifier": ("reward_funcs", "custom_reward_function.path", "remote_rm_url"),
    "objective.estimator": ("loss_type", "algorithm.adv_estimator", "advantage_estimator"),
    "train.steps": ("max_steps", "total_training_steps", ""),
    "train.prompts": ("generation_batch_size", "train_batch_size", "rollout_batch_size"),
    "train.samples": ("num_generations", "rollout.n", "n_samples_per_prompt"),
    "train.temperature": ("", "rollout.temperature", ""),
    "train.entropy_coef": ("", "entropy_coeff", "entropy_loss_coef"),
    "train.kl_coef": ("beta", "kl_loss_coef", "init_kl_coef"),
    "train.updates": ("num_iterations", "ppo_epochs", "max_epochs"),
    "train.ratio_clip": ("epsilon", "clip_ratio", "eps_clip"),
    "train.rollouts": ("use_vllm", "rollout.name", "vllm_num_engines"),
    "train.max_new_tokens": ("max_completion_length", "max_response_length", "generate_max_len"),
    "train.lr": ("learning_rate", "optim.lr", "actor_learning_rate"),
    "train.schedule": ("lr_scheduler_type", "warmup_style", "lr_scheduler"),
    "train.warmup_steps": ("warmup_ratio", "lr_warmup_steps", "lr_warmup_ratio"),
    "train.beta_1": ("adam_beta1", "", "adam_betas"),
    "train.beta_2": ("adam_beta2", "", ""),
    "train.epsilon": ("adam_epsilon", "", ""),
    "train.weight_decay": ("", "optim.weight_decay", "l2"),
    "train.grad_clip": ("max_grad_norm", "actor.grad_clip", "max_norm"),
    "train.offload": ("", "optimizer_offload", "adam_offload"),
    "train.micro_batch_tokens": (
        "per_device_train_batch_size",
        "ppo_max_token_len_per_gpu",
        "train_max_tokens_per_gpu",
    ),
    "train.rollout_tokens": ("", "max_num_batched_tokens", "rollout_max_tokens_per_gpu"),
    "train.save_every": ("save_steps", "save_freq", ""),
    "train.keep": ("save_total_limit", "max_actor_ckpt_to_keep", "max_ckpt_num"),
    "rollout.urls": ("vllm_server_base_url", "", ""),
    "rollout.timeout": ("vllm_server_timeout", "", ""),
    "rollout.correction": ("vllm_importance_sampling_correction", "", "enable_vllm_is_correction"),
    "rollout.cap": ("vllm_importance_sampling_cap", "", "vllm_is_truncated_threshold"),
    "eval.every": ("eval_steps", "test_freq", ""),
    "eval.samples": ("num_generations_eval", "val_kwargs.n", "eval_n_samples_per_prompt"),
    "eval.temperature": ("", "val_kwargs.temperature", "eval_temperature"),
    "eval.top_p": ("", "val_kwargs.top_p", ""),
    "run.dir": ("output_dir", "default_local_dir", "save_path"),
}
ALIASES = {name: key for key, names in ELSEWHERE.items() for name in names if name}


SECTIONS = {x.partition(".")[0] for x in KEYS if "." in x}


def inside_a_section(key: str) -> bool:
    return "." in key and key.partition(".")[0] in SECTIONS


def nearest(key: str) -> list[str]:
    """Return our keys for an unknown one: by a name elsewhere, by its last part, or by spelling.

    A key whose last part is right may stand in a wrong section.
    """
    known = {x: x for x in KEYS if x not in OPTIONS}
    names = known | ALIASES
    ends = [x for x in names if f".{key}".endswith(f".{x}")]
    if ends:
        return [names[max(ends, key=len)]]
    begun = dict.fromkeys(ours for x, ours in names.items() if x.endswith(f".{key}"))
    if begun:
        return list(begun)
    last = key.rpartition(".")[2]
    elsewhere = [x for x in known if x.endswith(f".{last}")] if inside_a_section(key) else []
    if elsewhere:
        return elsewhere
    last_parts = {x.rpartition(".")[2]: x for x in reversed(known)}
    near = difflib.get_close_matches(key, last_parts | names, 1, 0.75)
    return [(last_parts | names)[x] for x in near]


def answer(key: str) -> str:
    """Return the message for an unknown key, with our name for it if one is similar."""
    near = nearest(key)
    if not near:
        return "unknown key; --keys prints all of them"
    if len(near) > 1:
        return f"unknown key; the nearest are {', '.join(near)}"
    known = KEYS.get(near[0])
    meaning = f" ({known.metadata['help']})" if known else ""
    return f"unknown key; the nearest is {near[0]}{meaning}"
