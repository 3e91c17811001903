"""Small models in the hub's own format, with a BPE tokenizer trained on the spot."""

import torch

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def bpe(texts):
    """A byte-level BPE tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted({x for text in texts for x in text})
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 24,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def save_model(folder, kind, texts, seed=0, **more):
    """A `llama` or `qwen2` with random weights, far from uniform, and its tokenizer."""
    import transformers as hf

    name = {"llama": "Llama", "qwen2": "Qwen2"}[kind]
    tokenizer = bpe(texts)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(hf, f"{name}Config")(vocab_size=len(tokenizer), **SHAPE, **ends, **more)
    torch.manual_seed(seed)
    model = getattr(hf, f"{name}ForCausalLM")(config)
    for p in model.parameters():
        p.data.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
