import pytest

from plumbline.data_contracts.records import CuratedPair, Message, Origin

CONTEXT = 96
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["where is my order", "the order is here", "no I cannot help"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _model(tokenizer, seed):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer():
    return _tokenizer()


@pytest.fixture(scope="session")
def models(tokenizer):
    """(policy, reference): random weights of two seeds, so that they differ."""
    return _model(tokenizer, 1), _model(tokenizer, 2)


@pytest.fixture(scope="session")
def checkpoints(tokenizer, models, tmp_path_factory):
    """Folders (policy, reference)."""
    from plumbline.tasks.models.loading import save_model

    root = tmp_path_factory.mktemp("checkpoints")
    for name, model in zip(("policy", "reference"), models, strict=True):
        (root / name).mkdir()
        save_model(model, tokenizer, root / name)
    return root / "policy", root / "reference"


@pytest.fixture
def pair():
    """Factory of curated pairs: pair(number, prompt, chosen, rejected)."""

    def build(number, prompt="where is my order?", chosen="the order is here", rejected="no"):
        return CuratedPair(
            id=f"pair-{number}",
            prompt=(Message(role="user", content=prompt),),
            chosen=chosen,
            rejected=rejected,
            source="test",
            origin=Origin(file="test.jsonl", line=number + 1),
            cluster=f"cluster-{number}",
        )

    return build
