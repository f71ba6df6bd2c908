"""Checkpoints and tokenizers: found, checked, loaded and saved, or a `ModelError` that says what to do.

Only safetensors weights are read (a pickle can run code), code from a repository runs only when
`trust_remote_code` is passed, and a parameter that the checkpoint lacks is an error, never random numbers.

Padding: a tokenizer without a pad token gets its unk token where that differs from eos, else eos itself
(`padding_note` says so). Nothing in this package tells padding by token id: masks follow positions.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plumbline.data_contracts.errors import ModelError
from plumbline.tasks.models.chat import end_token_id, set_default_template
from plumbline.tasks.models.full_disk import full_disk_named
from plumbline.tasks.models.memory import keep_freed_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["float32", "bfloat16", "float16"]

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_HUB_TIMEOUT = 10.0  # seconds until a hub that does not answer counts as unreachable
_REPO_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_REWARD_HEAD = "score."  # the linear head of transformers' sequence-classification models


def seed_everything(seed: int, threads: int) -> None:
    """Seed python, numpy and torch, ask torch for deterministic kernels, set its CPU threads, keep freed memory."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # read by cuBLAS when its first handle is made
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # deterministic mode also fills every new tensor, a debugging aid that costs 2.4 times the step on CPU
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    keep_freed_memory()


def resolve(source: str | Path, revision: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """The local folder of a checkpoint: a folder as it is, or a Hugging Face name through the hub's cache.

    Raises `ModelError` when there is no such folder, or the name is neither cached nor reachable.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if not _REPO_ID.match(name):
        raise ModelError(
            f"Expected a model folder or a Hugging Face name (owner/name), found {name!r}, which is neither "
            "a folder on this machine nor a valid name. Check the path."
        )
    patterns = [*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES
    cached = _cached_snapshot(name, revision, patterns)
    return cached if cached is not None else _download_snapshot(name, revision, patterns)


def load_tokenizer(folder: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a pad token and a chat template (see the module and `chat.DEFAULT_TEMPLATE`).

    Raises `ModelError` when it cannot be read, or has no eos token to end a response with.
    """
    from transformers import AutoTokenizer

    _quiet()
    path = resolve(folder, trust_remote_code=trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    # the tokenizers library raises bare Exception on a broken tokenizer.json
    except Exception as error:
        raise ModelError(
            f"{path}: expected a tokenizer (tokenizer.json, tokenizer_config.json), found {_first_line(error)}. "
            f"Copy the tokenizer's files beside the weights, or restore the folder.{_remote_code_hint(error)}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{path}: the tokenizer names no eos token, so a response could not end. "
            "Set eos_token in tokenizer_config.json to the token that ends a text."
        )
    _set_padding(tokenizer)
    set_default_template(tokenizer)
    return tokenizer


def padding_note(tokenizer: PreTrainedTokenizerBase) -> str:
    """One sentence on the pad token, for facts and reports."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        return f"pad and eos are one token ({tokenizer.eos_token!r}); padding is found by position, not by id"
    return f"pad {tokenizer.pad_token!r}, eos {tokenizer.eos_token!r}"


def load_policy(folder: str | Path, *, dtype: Dtype = "float32", trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model, every parameter from its checkpoint.

    Raises `ModelError` naming the file when the checkpoint is missing, cut off, pickled, of other shapes
    than its config, incomplete, or holds numbers that are not finite.
    """
    return _load(folder, "AutoModelForCausalLM", dtype, trust_remote_code, new_parameters=None)


def load_reward(
    folder: str | Path, *, dtype: Dtype = "float32", trust_remote_code: bool = False, new_head: bool = False
) -> PreTrainedModel:
    """Load a sequence-classification model with one output.

    With `new_head` the folder holds a causal language model and the head (hidden → 1) is drawn from torch's
    global generator: seed it first (`seed_everything`).
    """
    head = _REWARD_HEAD if new_head else None
    return _load(folder, "AutoModelForSequenceClassification", dtype, trust_remote_code, head, num_labels=1)


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """Longest sequence in tokens that a model (and its tokenizer, if it states a length) takes.

    Raises `ModelError` when neither states one.
    """
    text = config.get_text_config()
    stated = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    # transformers writes 1e30 where a tokenizer states no length
    stated.append(tokenizer.model_max_length if tokenizer is not None else None)
    lengths = [int(length) for length in stated if length is not None and 0 < length < 2**31]
    if not lengths:
        raise ModelError(
            "Neither config.json (max_position_embeddings) nor the tokenizer (model_max_length) states a context "
            "length. Set model_max_length in tokenizer_config.json."
        )
    return min(lengths)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ModelError` when the tokenizer has ids that the model has no embedding for."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"The tokenizer's ids reach {highest}, the model embeds ids up to {rows - 1}: they do not belong "
            "together. Use the tokenizer that the model was trained with, or resize and retrain its embeddings."
        )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), config, generation config, tokenizer and chat template into `folder`.

    The same weights give the same bytes. Raises `StageError` when the disk is full.
    """
    _quiet()
    check_vocabulary(model, tokenizer)
    with full_disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def materialise_base(source: str, folder: Path, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """Load any checkpoint (folder or Hugging Face name) and write it as the base model of a workspace.

    Returns facts: source, commit (of a hub snapshot), architecture, parameters, dtype as written, context
    length, end and padding tokens, whether the chat template is the default one, trust_remote_code.
    """
    path = resolve(source, revision, trust_remote_code=trust_remote_code)
    model = load_policy(path, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    save_model(model, tokenizer, folder)
    return {
        "source": Path(source).name if Path(source).expanduser().is_dir() else source,
        "revision": path.name if path.parent.name == "snapshots" else revision,
        "trust_remote_code": trust_remote_code,
        **describe(model, tokenizer),
    }


def describe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Facts of a model and its tokenizer for a manifest or a model card."""
    from plumbline.tasks.models.chat import DEFAULT_TEMPLATE

    return {
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "vocabulary": len(tokenizer),
        "context_length": context_length(model.config, tokenizer),
        "end_token": tokenizer.convert_ids_to_tokens(end_token_id(tokenizer)),
        "padding": padding_note(tokenizer),
        "default_chat_template": tokenizer.chat_template == DEFAULT_TEMPLATE,
    }


def _set_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is not None:
        return
    unk = tokenizer.unk_token_id
    tokenizer.pad_token = tokenizer.unk_token if unk not in (None, tokenizer.eos_token_id) else tokenizer.eos_token


def _load(
    source: str | Path,
    auto_class: str,
    dtype: Dtype,
    trust_remote_code: bool,
    new_parameters: str | None,
    **config: Any,
) -> PreTrainedModel:
    import torch
    import transformers
    from safetensors import SafetensorError

    _quiet()
    folder = resolve(source, trust_remote_code=trust_remote_code)
    _check_files(folder)
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            # listed in `info` and refused below, with names
            ignore_mismatched_sizes=True,
            **config,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: expected a checkpoint that transformers loads, found {type(error).__name__}: "
            f"{_first_line(error)}. Check config.json against the weights, or restore the folder."
            f"{_remote_code_hint(error)}"
        ) from error
    _check_loaded(model, info, folder, new_parameters)
    return model


def _check_files(folder: Path) -> None:
    """Config readable, weights in safetensors, each file whole: found out before anything is built."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: expected config.json of a Hugging Face checkpoint, found no such file. "
            "Point to the folder that holds config.json, or restore it."
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = f"only pickled weights ({', '.join(pickles[:3])}), which can run code" if pickles else "no weights"
        raise ModelError(
            f"{folder}: expected weights in safetensors, found {found}. "
            "Convert them where you trust them (save_pretrained writes safetensors), or restore the file."
        )
    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file}: expected a whole safetensors file, found {_first_line(error)} "
                f"({file.stat().st_size} bytes). It was cut off or changed: copy or restore it again."
            ) from error


def _check_loaded(model: PreTrainedModel, info: dict[str, Any], folder: Path, new_parameters: str | None) -> None:
    import torch

    missing = [key for key in info["missing_keys"] if new_parameters is None or not key.startswith(new_parameters)]
    if missing:
        raise ModelError(
            f"{folder}: expected every parameter in the checkpoint, found {len(missing)} missing ({_some(missing)}). "
            "config.json asks for more than the weights hold, or the checkpoint is of another kind of model."
        )
    if info["mismatched_keys"]:
        names = [str(key[0]) if isinstance(key, tuple) else str(key) for key in info["mismatched_keys"]]
        raise ModelError(
            f"{folder}: expected the shapes of config.json, found {len(names)} parameters of other shapes "
            f"({_some(names)}). Restore the config.json that belongs to these weights."
        )
    broken = [name for name, tensor in model.named_parameters() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ModelError(
            f"{folder}: expected finite weights, found NaN or infinity in {len(broken)} parameters ({_some(broken)}). "
            "The checkpoint comes from a training that diverged, or is damaged: restore an earlier one."
        )


def _cached_snapshot(name: str, revision: str | None, patterns: list[str]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    whole = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return folder if whole else None


def _download_snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        # one quick question first: snapshot_download retries an unreachable hub for most of a minute
        commit = HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT).sha
        return Path(snapshot_download(name, revision=commit, allow_patterns=patterns))
    # whichever way the network, the hub or the login fails, the user's way out is the same
    except Exception as error:
        raise ModelError(
            f"Model {name!r}{f' at {revision!r}' if revision else ''} is no folder here, is not in the Hugging Face "
            f"cache, and could not be fetched ({type(error).__name__}: {_first_line(error)}). Check the name, log in "
            "for a gated model, or download it where the hub is reachable (`hf download`) and give its folder."
        ) from error


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _remote_code_hint(error: BaseException) -> str:
    return " It brings its own code: set trust_remote_code if you trust it." if "remote_code" in str(error) else ""


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3])
