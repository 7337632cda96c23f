"""Agreement with the peers cannot fall unseen: `tests/peers.py` prints the numbers, this holds them."""

from collections import Counter

import peers


def test_agreement_with_the_peers() -> None:
    found = list(peers.results())
    assert len(found) >= 1200
    wrong = [result for result in found if result[2].startswith("wrong")]
    assert not wrong, wrong[:3]
    equal = Counter(group for group, _, outcome in found if outcome == "equal")
    assert dict(equal) == peers.AGREED, "more is better: raise AGREED; fewer is a fault"
    missing = {(group, name) for group, name, outcome in found if outcome.startswith("missing")}
    assert missing == peers.known_missing(), "tests/peer_cases/MISSING lists them"
