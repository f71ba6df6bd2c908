"""The error tree of Plumbline: every failure that a user can cause or meet.

```
PlumblineError                 exit 3   a stage failed
├── UsageError                 exit 2   wrong command line, missing file, not a workspace
│   ├── ParamsError            exit 2   a params key or value is wrong
│   ├── UnreadableFile         exit 2   a feedback file as a whole is not what can be read
│   └── WorkspaceBusy          exit 2   another run is under way in the workspace
├── CheckFailed                exit 1   a gate, contract or audit said no
│   └── ContractViolation      exit 1   feedback breaks its contract beyond what params allow
├── ArtifactError              exit 3   an artifact is missing, half-written or not what it claims
├── ModelError                 exit 3   a checkpoint or tokenizer cannot be used
├── RewardError                exit 3   a reward function gave what no stated fallback covers
├── JudgeError                 exit 3   a judge cannot be reached, or answers nothing usable
│   └── JudgeRefused           exit 1   a judge agrees with people less than params allow
├── VersioningError            exit 3   DVC or git refused
│   └── InputsChangedError     exit 3   an input got another version while a stage ran
├── OperationsError            exit 3   a service, or the operations database, refused
├── SignatureError             exit 1   a version or the ledger is unsigned, or not what was signed
│   └── SigningError           exit 3   a signing key cannot be made or used
├── RegistryError              exit 3   MLflow refused
│   ├── RegistryRefused        exit 1   a check said no: an alias holds the version, another moved it
│   └── UnknownModelError      exit 2   no such model, version or alias
├── StageError                 exit 3   a stage ended badly (killed, out of memory, disk full)
├── Interrupted                exit 3   SIGINT or SIGTERM ended the command
└── UnexpectedError            exit 3   nobody foresaw it: a mistake of the program, or of a library
```

A message says what was expected, what was found (bounded examples) and what to do.
The command line prints the message alone, never a traceback, and ends with `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar


class PlumblineError(Exception):
    """Root of the tree. `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 3


class UsageError(PlumblineError):
    """The command line, a path given by the user, or the workspace itself is wrong."""

    exit_code: ClassVar[int] = 2


class ParamsError(UsageError):
    """A params key is unknown, or its value is out of range."""


class UnreadableFile(UsageError):
    """A feedback file is damaged, empty or of another format: none of its rows can be read."""


class WorkspaceBusy(UsageError):
    """Another run is under way in the workspace."""


class CheckFailed(PlumblineError):
    """A check ran to its end and said no."""

    exit_code: ClassVar[int] = 1


class ContractViolation(CheckFailed):
    """Feedback breaks its contract beyond what params allow."""


class ArtifactError(PlumblineError):
    """An artifact is missing, half-written, of another contract, or changed after it was written."""


class ModelError(PlumblineError):
    """A checkpoint or tokenizer cannot be loaded or used."""


class RewardError(PlumblineError):
    """A reward function raised, or returned NaN, None or the wrong number of values, and no fallback is stated."""


class JudgeError(PlumblineError):
    """A judge cannot be reached, or answers nothing usable."""


class JudgeRefused(JudgeError):
    """A judge agrees with people less than params allow."""

    exit_code: ClassVar[int] = 1


class VersioningError(PlumblineError):
    """DVC or git refused an operation."""


class InputsChangedError(VersioningError):
    """An input of a stage got another version while the stage ran."""


class OperationsError(PlumblineError):
    """A service cannot be started or reached, or the operations database refused."""


class SignatureError(PlumblineError):
    """A model version is not signed, or its files or its ledger are not what was signed."""

    exit_code: ClassVar[int] = 1


class SigningError(SignatureError):
    """A signing key cannot be made or used."""

    exit_code: ClassVar[int] = 3


class RegistryError(PlumblineError):
    """MLflow refused an operation."""


class RegistryRefused(RegistryError):
    """A check before a change of the registry said no; nothing was changed."""

    exit_code: ClassVar[int] = 1


class UnknownModelError(RegistryError):
    """The registry has no such model, version or alias."""

    exit_code: ClassVar[int] = 2


class StageError(PlumblineError):
    """A stage ended badly: killed, timed out, out of memory, disk full."""


class Interrupted(PlumblineError):
    """SIGINT (Ctrl-C) or SIGTERM ended the command."""


class UnexpectedError(PlumblineError):
    """An error that nobody foresaw: a mistake of the program or of a library. Its traceback is in a log."""
