"""Small models in the hub's own format, with BPE tokenizers, made on the spot."""

import torch

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}
OWN = SHAPE | {"head_dim": 8}
OF_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
FALCON = {x: SHAPE[x] for x in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
WINDOW = {"sliding_window": 4}  # shorter than the texts
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
ZOO = {  # families of models, each by what transformers calls it, and a shape of two layers
    "olmo": ("Olmo", SHAPE),
    "olmo 2": ("Olmo2", SHAPE),
    "granite": ("Granite", SHAPE),
    "cohere": ("Cohere", SHAPE | {"logit_scale": 0.5}),
    "cohere 2": ("Cohere2", SHAPE | MIXED | {"logit_scale": 0.5}),
    "glm 4": ("Glm4", OWN),
    "starcoder 2": ("Starcoder2", SHAPE | WINDOW),
    "stablelm": ("StableLm", SHAPE),
    "phi": ("Phi", SHAPE),
    "gemma 3": ("Gemma3Text", OWN | MIXED),
    "smollm 3": ("SmolLM3", SHAPE | {"no_rope_layers": [1, 0]}),
    "exaone 4": ("Exaone4", OWN | MIXED),
    "nemotron": ("Nemotron", OWN),
    "gpt-j": ("GPTJ", OF_GPT | {"rotary_dim": 4}),
    "hunyuan": ("HunYuanDenseV1", OWN),
    "seed-oss": ("SeedOss", OWN),
    "ernie 4.5": ("Ernie4_5", OWN),
    "helium": ("Helium", OWN),
    "arcee": ("Arcee", SHAPE),
    "falcon": ("Falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, old": ("Falcon", FALCON),  # attention and MLP side by side, one key for all heads
    "falcon, alibi": (
        "Falcon",
        FALCON | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    ),
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
EXPERTS |= {"num_experts": 4, "num_local_experts": 4}
MIXTURES = {
    "mixtral": ("Mixtral", OWN | EXPERTS),
    "qwen 3 moe": ("Qwen3Moe", OWN | EXPERTS),
    "qwen 2 moe": ("Qwen2Moe", SHAPE | EXPERTS | {"shared_expert_intermediate_size": 16}),
}


def tiny(kind, vocabulary, dtype=torch.float64):
    """One of ZOO or MIXTURES with random weights, far from uniform; norms not 1, biases not 0."""
    import transformers as hf

    name, shape = (ZOO | MIXTURES)[kind]
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = getattr(hf, f"{name}Config")(vocab_size=vocabulary, **shape, **ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype)
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    return model.eval()


def _byte_level(texts, special, size, alphabet):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def bpe_tokenizer(texts, template=TEMPLATE):
    """Of all bytes, with <bos> before a text, as Llama's does; so does its chat template."""
    from tokenizers import pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>"]
    tokenizer = _byte_level(texts, special, 400, pre_tokenizers.ByteLevel.alphabet())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=template,
    )


def small_tokenizer(texts):
    """Of the characters of these texts alone."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted({x for text in texts for x in text})
    tokenizer = _byte_level(texts, ["<pad>", "<end>"], len(alphabet) + 24, alphabet)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def save_model(folder, kind, texts, seed=0, **more):
    """A `llama` or `qwen2` with random weights, far from uniform, and its tokenizer."""
    import transformers as hf

    name = {"llama": "Llama", "qwen2": "Qwen2"}[kind]
    tokenizer = small_tokenizer(texts)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(hf, f"{name}Config")(vocab_size=len(tokenizer), **SHAPE, **ends, **more)
    torch.manual_seed(seed)
    model = getattr(hf, f"{name}ForCausalLM")(config)
    for p in model.parameters():
        p.data.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def qwen2(folder, prompts, answers, steps=60):
    """A Qwen2 that gives each prompt its answers, as often as they are named, saved in `folder`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from eval.policy.logprobs import answer_batch, completion_logprobs
    from eval.policy.policy import Policy

    tokenizer = bpe_tokenizer([*prompts, *answers])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
        policy = Policy(Qwen2ForCausalLM(config), tokenizer)
        batch = answer_batch(policy, prompts, answers)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            (-completion_logprobs(policy.model, batch).sum(1).mean()).backward()
            optimizer.step()
    policy.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
