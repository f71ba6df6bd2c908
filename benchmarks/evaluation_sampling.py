"""Sampling for evaluation: tokens a second of `tasks.models.sampling` and of transformers' `generate`.

Both sample the same prompts from the same model with the same batch size, sorted by length, in alternating
rounds of one process. The model is a random Qwen3 of the sample world's size (hidden 64, 2 layers, vocabulary
1,024) whose end token has a fixed bias, so that completions end after some 16 tokens with a long tail, as
those of a trained assistant do. Only the tokens of completions count, end token included, padding not.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plumbline.data_contracts.records import Message

SEED = 17
VOCABULARY = 1024
END_BIAS = 4.2  # gives the end token about 1/16 of the mass beside 1,023 near-equal others: log(1023/15)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_prompts(count: int) -> list[tuple[Message, ...]]:
    """Prompts of 6 to 24 made-up words."""
    from plumbline.data_contracts.records import Message

    generator = random.Random(SEED)
    words = ["".join(generator.choices("abcdefghijklmnoprstuvw", k=generator.randint(2, 7))) for _ in range(600)]
    texts = [" ".join(generator.choices(words, k=generator.randint(6, 24))) for _ in range(count)]
    return [(Message(role="user", content=text),) for text in texts]


def build_tokenizer(prompts: list[tuple[Message, ...]]) -> PreTrainedTokenizerBase:
    """A byte-level BPE of `VOCABULARY` tokens, trained on the prompts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([message.content for prompt in prompts for message in prompt], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random Qwen3 whose output layer has a bias on the end token alone."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(config).eval()
    head = torch.nn.Linear(64, VOCABULARY)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.bias[tokenizer.eos_token_id] = END_BIAS
    model.lm_head = head
    return model


def time_plumbline(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[tuple[Message, ...]], args: Any, seed: int
) -> tuple[float, int]:
    """Seconds and completion tokens of our sampler."""
    from plumbline.tasks.models.sampling import sample

    start = time.perf_counter()
    found = sample(
        model,
        tokenizer,
        prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        seed=seed,
        batch_size=args.batch_size,
    )
    return time.perf_counter() - start, sum(len(completion.token_ids) for completion in found)


def time_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[tuple[Message, ...]], args: Any, seed: int
) -> tuple[float, int]:
    """Seconds and completion tokens of `model.generate`, texts decoded as ours are."""
    import torch

    from plumbline.tasks.models.chat import encode_prompts

    torch.manual_seed(seed)
    start = time.perf_counter()
    heads = sorted(encode_prompts(tokenizer, prompts), key=len, reverse=True)
    tokens = 0
    for at in range(0, len(heads), args.batch_size):
        batch = tokenizer.pad({"input_ids": heads[at : at + args.batch_size]}, return_tensors="pt")
        output = model.generate(
            **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=args.max_new_tokens
        )[:, batch["input_ids"].shape[1] :]
        tokenizer.batch_decode(output, skip_special_tokens=True)
        ended = (output == tokenizer.eos_token_id).int()  # (B, T)
        # a row counts up to and with its first end token
        tokens += int(((ended.cumsum(1) - ended) == 0).sum())
    return time.perf_counter() - start, tokens


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--prompts", type=int, default=768)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(args.threads)
    prompts = build_prompts(args.prompts)
    tokenizer = build_tokenizer(prompts)
    model = build_model(tokenizer)
    runs: dict[str, list[tuple[float, int]]] = {"plumbline": [], "generate": []}
    for round_number in range(-1, args.rounds):  # round -1 warms both up and is not counted
        ours = time_plumbline(model, tokenizer, prompts, args, SEED + round_number)
        theirs = time_generate(model, tokenizer, prompts, args, SEED + round_number)
        if round_number >= 0:
            runs["plumbline"].append(ours)
            runs["generate"].append(theirs)
    rates = {name: [tokens / seconds for seconds, tokens in found] for name, found in runs.items()}
    result = {
        "benchmark": "evaluation_sampling",
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "prompts": args.prompts,
        "batch_size": args.batch_size,
        "max_new_tokens": args.max_new_tokens,
        "rounds": args.rounds,
        "threads": args.threads,
        "tokens_per_completion": statistics.mean(tokens / args.prompts for _, tokens in runs["plumbline"]),
        "generate_tokens_per_completion": statistics.mean(tokens / args.prompts for _, tokens in runs["generate"]),
        "plumbline_tokens_per_second": statistics.median(rates["plumbline"]),
        "generate_tokens_per_second": statistics.median(rates["generate"]),
        "ratio": statistics.median(a / b for a, b in zip(rates["plumbline"], rates["generate"], strict=True)),
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"sampler {result['plumbline_tokens_per_second']:,.0f} tokens/s, generate "
            f"{result['generate_tokens_per_second']:,.0f} tokens/s: {result['ratio']:.2f}x"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
