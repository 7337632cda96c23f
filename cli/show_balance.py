"""How evenly the bins of each step divide over ranks: `postmill show packed/ --ranks 8`. Read from the plan alone."""

from pathlib import Path

from postmill.cli.tool import Args
from postmill.io.errors import ConfigError


def balance(folder: Path, args: Args) -> str:
    """One line: the largest cost of a rank over the mean of all, in the mean step and in the worst one.

    The steps are those of the first epoch, and a last step that is not full does not count. Raises ConfigError (2).
    """
    from postmill._native import deal_bins
    from postmill.io.packed import PackedReader

    ranks, each = (int(args.options.get(name, "1")) for name in ("--ranks", "--bins-per-rank"))
    if ranks < 2 or each < 1:
        raise ConfigError(f"--ranks {ranks} --bins-per-rank {each}: expected 2 ranks or more, with a bin each")
    reader = PackedReader(folder)
    num_steps = len(reader) // (ranks * each)
    if num_steps == 0:
        raise ConfigError(f"{folder}: has {len(reader)} bins, a step of {ranks} ranks takes {ranks * each}")
    _, imbalance = deal_bins(reader.plan.cost[reader.order(epoch=0)], ranks, each)
    full = imbalance[:num_steps]
    return (
        f"{num_steps} steps of {ranks} ranks with {each} bin{'s' if each > 1 else ''} each: the slowest rank costs"
        f" {full.mean():.3f} times the mean rank, {full.max():.3f} in the worst step"
    )
