"""Small models in the hub's format, made on the spot."""

import torch

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def bpe_tokenizer(texts, template=TEMPLATE):
    """Byte-level BPE that puts <bos> before a text, as Llama's does; so does its chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
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
