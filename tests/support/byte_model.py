"""A random Qwen2-style model of a few thousand parameters whose tokens are bytes: it covers any text."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]


def byte_tokenizer(bos=False, **options):
    """Byte-level BPE without merges; with `bos` it begins every text with <s>, as Llama's does."""
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    defaults = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": "<s>" if bos else None}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**defaults, **options})
    made.chat_template = CHAT_TEMPLATE
    return made


def save_byte_model(directory, tokenizer=None, padding=0, seed=0, **changes):
    """Write such a model with its tokenizer, as a Hugging Face directory; returns the directory as text."""
    tokenizer = tokenizer or byte_tokenizer()
    torch.manual_seed(seed)
    config = {
        "vocab_size": len(tokenizer) + padding, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None,
    }  # fmt: skip
    Qwen2ForCausalLM(Qwen2Config(**{**config, **changes})).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)
