"""The process of one flow run: `python -m plumbline.flows.deployment.run_engine`, with Prefect's variables for the run.

Prefect's engine imports an entrypoint with the current folder first on the import path. A `plumbline.py` or
`random.py` in the workspace would then take the place of ours or Python's. So our flow is imported before.
"""

from __future__ import annotations

import os
import runpy
from importlib import import_module


def main() -> None:
    """Import the module of `PREFECT__FLOW_ENTRYPOINT`, then be Prefect's engine."""
    import_module(os.environ["PREFECT__FLOW_ENTRYPOINT"].partition(":")[0])
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
