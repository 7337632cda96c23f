"""Which records of a dataset are read, and how often: `#count`, mixes, and the validation split.

Everything is decided by record number or by a record's own bytes, never by order of work. A sample is the records whose
numbers hash lowest. A record's side of the split depends on its bytes alone: rows that are added later move none of the
old ones, and equal rows are on the same side.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from postmill.io.errors import NO_INPUT, ArtifactError, ConfigError

Stop = Literal["first_exhausted", "all_exhausted"]


def sample(num_records: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` distinct numbers below `num_records`, ascending: those with the lowest hashes.

    The hash is SplitMix64 of the number, which is a bijection, so there are no ties (Steele, Lea, Flood: Fast
    splittable pseudorandom number generators, 2014). Not NumPy's generator, whose streams may change with its version.
    """
    z = np.arange(num_records, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z += _mix(np.array([seed % 2**64], dtype=np.uint64))[0]
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = _mix(z)
    chosen = np.argpartition(z, count - 1)[:count] if count < num_records else np.arange(num_records)
    return np.sort(chosen).astype(np.int64)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def resample(times: npt.NDArray[np.uint32], count: int, seed: int) -> npt.NDArray[np.uint32]:
    """How often each record is read if `count` rows are wanted of those that `times` gives.

    Fewer: a sample. More: whole repeats, and a sample for the rest.
    """
    rows = np.repeat(np.arange(len(times)), times)
    repeats, rest = divmod(count, len(rows))
    result: npt.NDArray[np.uint32] = times * np.uint32(repeats)
    if rest:
        np.add.at(result, rows[sample(len(rows), rest, seed)], np.uint32(1))
    return result


def times_read(num_records: int, count: int | None, seed: int, name: str) -> npt.NDArray[np.uint32]:
    """How often each record of a dataset is read, by `#count`. Raises ArtifactError for repeats of nothing."""
    once = np.ones(num_records, np.uint32)
    if count is None:
        return once
    if num_records == 0:
        raise ArtifactError(f"{name}: has no rows to take {count} from", NO_INPUT)
    return resample(once, count, seed)


def mix_counts(rows: Sequence[int], weights: Sequence[float], stop: Stop) -> list[int]:
    """Rows to take of each dataset, so that their shares are as `weights` say.

    `first_exhausted`: as many as there can be with no row repeated. `all_exhausted`: as few as there can be with every
    row used; smaller datasets repeat. Shares are exact up to one row. Raises ConfigError.
    """
    if len(weights) != len(rows):
        raise ConfigError(f"mix: {len(weights)} weights for {len(rows)} datasets; give one each")
    if not all(0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"mix: weights must be above 0, got {', '.join(f'{weight:g}' for weight in weights)}")
    if 0 in rows:
        raise ConfigError(f"mix: dataset {rows.index(0) + 1} has no rows; leave it out")
    shares = [Fraction(repr(float(weight))) for weight in weights]
    totals = [Fraction(count) / share for count, share in zip(rows, shares, strict=True)]
    total = min(totals) if stop == "first_exhausted" else max(totals)
    return [int(total * share) for share in shares]


def held_out(hashes: npt.NDArray[np.uint64], ratio: float) -> npt.NDArray[np.bool_]:
    """Which records belong to the validation split: those whose hash is in the lowest `ratio` of all hashes."""
    mask: npt.NDArray[np.bool_] = hashes < np.uint64(min(int(ratio * 2**64), 2**64 - 1))
    return mask
