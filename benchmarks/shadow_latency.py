"""Latency of users' answers with every request mirrored against none, in one run: percentiles and their ratio.

    python -m benchmarks.shadow_latency [--requests 200]

One server on loopback with a small random model, its mirrored answers by a process at niceness 19. Blocks with and
without mirroring alternate, so that a busy machine weighs on both alike; requests come one after another, with a pause
as long as an answer, as users' do. A busy neighbour still shows: read the ratio, not the milliseconds.
"""

from __future__ import annotations

import argparse
import os
import socket
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
    asked = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as folder:
        service, url, end = _serve(Path(folder))
        try:
            _measure(service, url, BLOCK)
            times: dict[bool, list[float]] = {False: [], True: []}
            for block in range(2 * (-(-asked // BLOCK))):
                mirrored = block % 2 == 1
                service.mirror._share = 1.0 if mirrored else 0.0
                times[mirrored] += _measure(service, url, BLOCK)
                service.mirror.wait_idle(60)
            print(f"mirrored {service.mirror.answered}, dropped {service.mirror.dropped}")
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                off, on = (sorted(times[side])[int(share * len(times[side]))] for side in (False, True))
                print(f"{name}: {1000 * off:.1f} ms without, {1000 * on:.1f} ms with mirroring, ratio {on / off:.3f}")
        finally:
            end()


def _measure(service: Any, url: str, count: int) -> list[float]:
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

    from tasks.database import open_database
    from tasks.database.params import OperationsParams
    from tasks.serving import log
    from tasks.serving.app import create_app
    from tasks.serving.local_backend import Defaults, LocalBackend, LocalSpec
    from tasks.serving.log_writer import LogWriter
    from tasks.serving.params import ServingParams
    from tasks.serving.service import Parts, Service
    from tasks.serving.shadow_process import ShadowProcess
    from tasks.serving.signals import rule_detector
    from tasks.serving.slots import Slot

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
    service = Service(parts, params)
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

    from tasks.models.chat import set_default_template
    from tasks.models.loading import save_model

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
