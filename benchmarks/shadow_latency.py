"""Latency of users' answers with every request mirrored against none, in one run: percentiles and their ratio.

    python -m benchmarks.shadow_latency [--requests 200] [--json]

One server on loopback with a small random model, its mirrored answers by a process at low priority. Blocks with and
without mirroring come in pairs, in turns first, so that a busy machine weighs on both alike; requests come one after
another, with a pause as long as an answer, as users' do. Read the ratios: of each pair's medians, the middle one with
its 95 % interval (order statistics, no normal distribution assumed), and of the processor time that the serving process
itself took for an answer, which no neighbour can change.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

BLOCK = 10
TOKENS = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="Requests on each side.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        service, url, end = _serve(Path(folder))
        try:
            found = measure(service, url, pairs=-(-asked.requests // BLOCK))
        finally:
            end()
    print(json.dumps(found) if asked.json else "\n".join(f"{name}: {_said(value)}" for name, value in found.items()))


def measure(service: Any, url: str, pairs: int) -> dict[str, Any]:
    """Blocks of both kinds in pairs: figures by name."""
    _ask(url, BLOCK)
    times: dict[bool, list[float]] = {False: [], True: []}
    cpu = {False: 0.0, True: 0.0}
    ratios = []
    for pair in range(pairs):
        middle = {}
        for mirrored in (False, True) if pair % 2 == 0 else (True, False):
            service.mirror._share = 1.0 if mirrored else 0.0
            before = time.process_time()
            block = _ask(url, BLOCK)
            cpu[mirrored] += time.process_time() - before
            service.mirror.wait_idle(60)
            times[mirrored] += block
            middle[mirrored] = statistics.median(block)
        ratios.append(middle[True] / middle[False])
    return {
        **{name: _percentile(times, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
        "ratio of a pair's medians": dict(zip(("value", "low", "high"), _middle(ratios), strict=True)),
        "processor ms an answer": {
            "without": 1000 * cpu[False] / len(times[False]),
            "with": 1000 * cpu[True] / len(times[True]),
            "ratio": cpu[True] / cpu[False],
        },
        "mirrored": {"answered": service.mirror.answered, "dropped": service.mirror.dropped},
        "load": {"1 min": os.getloadavg()[0]},
    }


def _percentile(times: dict[bool, list[float]], share: float) -> dict[str, float]:
    off, on = (sorted(times[side])[int(share * len(times[side]))] for side in (False, True))
    return {"without": 1000 * off, "with": 1000 * on, "ratio": on / off}


def _middle(values: list[float]) -> tuple[float, float, float]:
    """Median and its interval: the order statistics between which it lies with 95 %, by the binomial distribution."""
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    below = max(0, int(binom.ppf(0.025, n, 0.5)) - 1)
    return statistics.median(ordered), ordered[below], ordered[n - 1 - below]


def _said(value: dict[str, float]) -> str:
    return ", ".join(f"{name} {number:.3f}".rstrip("0").rstrip(".") for name, number in value.items())


def _ask(url: str, count: int) -> list[float]:
    import httpx

    body = {"messages": [{"role": "user", "content": "tell me a story"}], "max_tokens": TOKENS}
    times = []
    with httpx.Client(timeout=60) as client:
        for _ in range(count):
            start = time.perf_counter()
            client.post(f"{url}/v1/chat/completions", json=body).raise_for_status()
            times.append(time.perf_counter() - start)
            time.sleep(times[-1])
    return times


def _serve(folder: Path) -> tuple[Any, str, Callable[[], None]]:
    import uvicorn

    from plumbline.tasks.operations.serving import log
    from plumbline.tasks.operations.serving.app import create_app
    from plumbline.tasks.operations.serving.local_backend import Defaults, LocalBackend, LocalSpec
    from plumbline.tasks.operations.serving.log_writer import LogWriter
    from plumbline.tasks.operations.serving.service import ChatService, Parts
    from plumbline.tasks.operations.serving.shadow_process import ShadowProcess
    from plumbline.tasks.operations.serving.signals import rule_detector
    from plumbline.tasks.operations.serving.slots import Slot
    from plumbline.tasks.params.operations import OperationsParams
    from plumbline.tasks.params.serving import ServingParams
    from plumbline.tasks.storage.database import open_database

    params = ServingParams()
    spec = LocalSpec(_model(folder), Defaults(1.0, 1.0, TOKENS, TOKENS))
    engine = open_database(folder, OperationsParams(), log.METADATA)
    champion = Slot("champion", "champion", lambda _: "models:/a/1", lambda _: LocalBackend.load(spec))
    nice, limit = params.shadow.nice, params.shadow.timeout_s
    shadow = Slot(
        "shadow", "challenger", lambda _: "models:/a/2", lambda _: ShadowProcess(spec, nice=nice, timeout_s=limit)
    )
    champion.refresh(must=True)
    shadow.refresh(must=True)
    writer = LogWriter(lambda batch: log.record_all(engine, batch), params.log.queue)
    parts = Parts(
        champion, writer, lambda _: True, rule_detector(params.safety), lambda: datetime.now(UTC), shadow=shadow
    )
    service = ChatService(parts, params)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(service, model_name="a", token=None), log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()

    def end() -> None:
        server.should_exit = True
        thread.join(60)
        shadow.clear()

    return service, f"http://127.0.0.1:{listener.getsockname()[1]}", end


def _model(folder: Path) -> Path:
    """A random model of 2M parameters, large enough that an answer takes longer than its HTTP."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from plumbline.tasks.models.chat import set_default_template
    from plumbline.tasks.models.loading import save_model

    letters = [chr(code) for code in range(32, 127)]
    words = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    bare = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    set_default_template(tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    save_model(LlamaForCausalLM(config), tokenizer, folder / "model")
    return folder / "model"


if __name__ == "__main__":
    main()
