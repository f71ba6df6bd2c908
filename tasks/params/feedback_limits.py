"""How large a feedback file and its rows may be, so that a small file cannot hold up everything else."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_row_bytes`: of one row as JSON. `max_decoded_bytes`: of a gzip, zstd or Parquet file once that is undone.

    A longer row is set aside; a larger file is refused as a whole. None: unlimited.
    """

    max_row_bytes: int = 10_000_000
    max_decoded_bytes: int | None = 4_000_000_000

    def of_stored(self) -> Limits:
        """For what was let in: its size was weighed then, by the params of then."""
        return replace(self, max_decoded_bytes=None)


LIMITS = Limits()
