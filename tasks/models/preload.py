"""Imported once by the fork server: the libraries that every training stage needs and that load slowly.

The fork server notices its starter's end once its imports are done. Until then a thread looks, which has ended before
anything is forked. The starter's pid is in the environment: it may have ended before this module is read.
"""

import gc
import os
import threading

STARTER = "PLUMBLINE_FORK_SERVER_STARTER"
_LOOK_EVERY_S = 0.2


def _end_with(starter: int, done: threading.Event) -> None:
    while not done.wait(_LOOK_EVERY_S):
        if os.getppid() != starter:
            os._exit(1)


_done = threading.Event()
_look = threading.Thread(target=_end_with, args=(int(os.environ.get(STARTER, os.getppid())), _done), daemon=True)
_look.start()
try:
    import trl.trainer.dpo_trainer
    import trl.trainer.reward_trainer
    import trl.trainer.sft_trainer  # noqa: F401
finally:
    _done.set()
    _look.join()
gc.collect()
gc.freeze()  # a stage that is forked has all of this for ever: a collection, which trainers call, takes 0.3 s with it
