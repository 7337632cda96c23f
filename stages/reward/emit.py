"""What rewards become: a table of rewards, or rows of tokens to train on, copied from the rollouts without encoding."""

import bisect
from collections import defaultdict
from typing import Any

import msgspec
import pyarrow as pa

from postmill.io.manifest import Artifact
from postmill.io.media import MEDIA, has_media
from postmill.io.packed import TOKENS
from postmill.io.rollouts import REWARDS, rollout_batches
from postmill.io.schemas import REWARDS_V1, TOKENS_V1, with_media
from postmill.stages.protocol import Out
from postmill.stages.reward.config import Reward

_BATCH_ROWS = 8192
# rows may bring pictures' bytes along, a megabyte each
_PICTURE_ROWS = 64


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One row of REWARDS_V1, but for `kept`, which is whether there is no `drop_reason`."""

    row_id: bytes
    prompt_id: bytes
    scores: list[float | None]
    errors: list[dict[str, str]]
    reward: float | None
    advantage: float | None
    advantages: list[float] | None = None
    returns: list[float] | None = None
    values: list[float] | None = None
    group_kind: str
    drop_reason: str | None


class Pick(msgspec.Struct, frozen=True):
    """A rollout that becomes a row of tokens, with the columns that change."""

    number: int
    side: int | None = None
    margin: float | None = None
    label: float | None = None


def write_rewards(table: list[Judged], out: Out) -> None:
    """`rewards.arrow`: a row for each rollout. All rows are kept; whether to train on one is a column."""
    writer = out.table(REWARDS, REWARDS_V1)
    for start in range(0, len(table), _BATCH_ROWS):
        lines = [
            msgspec.structs.asdict(line) | {"kept": line.drop_reason is None}
            for line in table[start : start + _BATCH_ROWS]
        ]
        writer.write(pa.RecordBatch.from_pylist(lines, schema=REWARDS_V1))
    writer.close()
    out.ledger.keep(len(table))


def write_tokens(
    cfg: Reward, table: dict[int, Judged], rows: list[dict[str, Any]], artifacts: list[Artifact], out: Out
) -> None:
    """`tokens.arrow` with the rows that were picked; every other rollout is in the ledger with the reason.

    table: by number of the row that ends each sample; the rows between are branches of samples that went on.
    """
    numbers = list(table)
    picks, found = PICKERS[cfg.emit](cfg, list(table.values()))
    reasons = dict.fromkeys(set(range(len(rows))) - set(numbers), "earlier_branch")
    reasons |= {numbers[line]: reason for line, reason in found.items()}
    for number, reason in sorted(reasons.items()):
        row = rows[number]
        place = {"row_id": row["row_id"], "source": row["source"], "line": row["line"], "tokens_before": row["length"]}
        out.ledger.drop(place, reason)
    batches = rollout_batches(artifacts)
    starts = [0]
    for batch in batches:
        starts.append(starts[-1] + batch.num_rows)
    any_media = any(has_media(batch.schema) for batch in batches)
    schema = with_media(TOKENS_V1) if any_media else TOKENS_V1
    writer = out.table(TOKENS, schema)
    records: list[dict[str, Any]] = []
    for pick in picks:
        number = numbers[pick.number]
        at = bisect.bisect_right(starts, number) - 1
        names = [name for name in schema.names if name in batches[at].schema.names]
        [record] = batches[at].select(names).slice(number - starts[at], 1).to_pylist()
        if any_media:
            record.setdefault(MEDIA, [])
        changed = {"side": pick.side, "margin": pick.margin, "label": pick.label}
        records.append(record | changed | {"pair_id": record["pair_id"] if pick.side is not None else None})
        if len(records) == (_PICTURE_ROWS if any_media else _BATCH_ROWS):
            writer.write(pa.RecordBatch.from_pylist(records, schema=schema))
            records = []
    if records:
        writer.write(pa.RecordBatch.from_pylist(records, schema=schema))
    writer.close()
    out.ledger.keep(len(picks))


def _by_prompt(table: list[Judged]) -> tuple[dict[bytes, list[int]], dict[int, str]]:
    """Numbers of the rows that may be used, by prompt, the best first; and why the others may not."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    reasons: dict[int, str] = {}
    for number, line in enumerate(table):
        if line.drop_reason is None:
            groups[line.prompt_id].append(number)
        else:
            reasons[number] = line.drop_reason
    for numbers in groups.values():
        numbers.sort(key=lambda n: -(table[n].reward or 0.0))  # a stable sort: earlier samples win ties
    return groups, reasons


def _pairs(cfg: Reward, table: list[Judged]) -> tuple[list[Pick], dict[int, str]]:
    groups, reasons = _by_prompt(table)
    picks: list[Pick] = []
    for numbers in groups.values():
        best, worst = numbers[0], numbers[-1]
        gap = (table[best].reward or 0.0) - (table[worst].reward or 0.0)
        if len(numbers) < 2 or gap < cfg.min_gap:
            reasons |= dict.fromkeys(numbers, "no_gap")
            continue
        picks += [Pick(best, side=0, margin=gap), Pick(worst, side=1, margin=gap)]
        reasons |= dict.fromkeys(numbers[1:-1], "between")
    return picks, reasons


def _labels(cfg: Reward, table: list[Judged]) -> tuple[list[Pick], dict[int, str]]:
    groups, reasons = _by_prompt(table)
    numbers = sorted(number for group in groups.values() for number in group)
    return [Pick(n, label=float((table[n].reward or 0.0) >= cfg.threshold)) for n in numbers], reasons


def _sft(cfg: Reward, table: list[Judged]) -> tuple[list[Pick], dict[int, str]]:
    groups, reasons = _by_prompt(table)
    picks: list[Pick] = []
    for numbers in groups.values():
        good = [n for n in numbers if (table[n].reward or 0.0) >= cfg.threshold]
        picks += [Pick(n) for n in good[: cfg.best]]
        reasons |= dict.fromkeys(good[cfg.best :], "not_among_the_best")
        reasons |= dict.fromkeys(numbers[len(good) :], "below_threshold")
    return sorted(picks, key=lambda pick: pick.number), reasons


PICKERS = {"pairs": _pairs, "labels": _labels, "sft": _sft}
"""`emit` -> which rollouts become rows, and why the others do not."""
