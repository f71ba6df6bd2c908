from __future__ import annotations

import subprocess
import sys

import pytest

from plumbline.tasks.models.memory import keep_freed_memory

PROGRAM = """
import resource, torch
from plumbline.tasks.models.memory import keep_freed_memory

torch.set_num_threads(1)
{setting}

def step():
    # activations, all of them freed at the end
    activations = [torch.ones(2**20) for _ in range(16)]

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(setting: str) -> int:
    program = PROGRAM.format(setting=setting)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_step_takes_the_memory_that_the_one_before_it_freed() -> None:
    """20 steps of 16 x 4 MiB are 327,680 pages of 4 KiB or 640 of 2 MiB, each a fault where it is taken anew.

    What glibc does by itself hangs on what lies on top of the heap; here it is made to map every tensor apart.
    """
    if not keep_freed_memory():
        pytest.skip("malloc is not glibc's on this machine")
    assert page_faults("keep_freed_memory()") < 320
    assert page_faults("import ctypes; ctypes.CDLL(None).mallopt(-3, 2**20)") >= 640
