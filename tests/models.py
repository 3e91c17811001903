"""Small models in the hub's own format, with BPE tokenizers, made on the spot."""

import torch

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}


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

    from eval.policy import Policy, answer_batch, completion_logprobs

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
