"""Monte Carlo tree search over the steps of an answer, for all prompts side by side.

A node is an answer so far. In each round every prompt walks from its root to a leaf, each time to the child with the
largest Q + explore * P * sqrt(visits of the parent) / (1 + visits), samples the next steps from there, and judges each:
by the guide's mean score of whole answers that go on from it (`playouts`), or of the step itself. Scores are brought to
0..1 by the least and the largest of the tree, so that any guide's numbers will do. Every whole answer that was seen is
a result. Of each step it is known then whether it led to a right answer, which is what a process reward model learns.
Sources: Silver et al., Mastering the game of Go without human knowledge (PUCT); Schrittwieser et al., MuZero (scores);
Math-Shepherd, <https://arxiv.org/abs/2312.08935> (labels).
"""

import math

import msgspec

from postmill.stages.rollout.search_options import Search
from postmill.stages.rollout.tries import Path, Tries


class Node:
    """An answer so far, and what is known of it."""

    def __init__(self, path: Path, parent: "Node | None") -> None:
        self.path, self.parent = path, parent
        self.children: list[Node] = []
        self.visits, self.total = 0, 0.0
        self.is_over = bool(path.finish)
        """Whether nothing is left to try below it."""
        self.led_right = False

    def add(self, score: float) -> None:
        """A judgement, for this node and all before it."""
        node: Node | None = self
        while node is not None:
            node.visits, node.total = node.visits + 1, node.total + score
            node = node.parent

    def close(self) -> None:
        """Mark nodes above of which all children are over."""
        node = self.parent
        while node is not None and all(child.is_over for child in node.children):
            node.is_over = True
            node = node.parent


class Tree:
    """The tree of one prompt."""

    def __init__(self, root: Path, cfg: Search) -> None:
        self.root, self._cfg = Node(root, None), cfg
        self.whole: list[tuple[Path, Node]] = []
        """Every whole answer, and the last step of it that is a node."""
        self._low, self._high = math.inf, -math.inf

    def leaf(self) -> Node:
        """Where to go on."""
        node = self.root
        while node.children:
            live = [child for child in node.children if not child.is_over]
            node = max(live, key=lambda child: self._worth(child, len(child.parent.children) if child.parent else 1))
        return node

    def _worth(self, node: Node, num_ways: int) -> float:
        assert node.parent is not None
        mean = node.total / node.visits if node.visits else self._low
        span = self._high - self._low
        value = (mean - self._low) / span if span > 0 else 0.5
        return value + self._cfg.explore / num_ways * math.sqrt(node.parent.visits) / (1 + node.visits)

    def judge(self, node: Node, ends: list[Path]) -> None:
        """Take over what the guide said of a new node: of itself, and of answers that go on from it."""
        said = [path.score for path in (ends or [node.path]) if path.error is None and path.score > -math.inf]
        for score in said:
            self._low, self._high = min(self._low, score), max(self._high, score)
        if said:
            node.add(sum(said) / len(said))
        for path in [*ends, *([node.path] if node.path.finish else [])]:
            if path.error is not None:
                continue
            self.whole.append((path, node))
            if path.score >= self._cfg.right_at:
                above: Node | None = node
                while above is not None:
                    above.led_right, above = True, above.parent

    def answers(self) -> list[Path]:
        """All whole answers, each with what is known of its steps."""
        return [msgspec.structs.replace(path, steps=self._steps(path, node)) for path, node in self.whole]

    def _steps(self, path: Path, node: Node) -> list[tuple[int, bool]]:
        found: list[tuple[int, bool]] = []
        at: Node | None = node
        while at is not None and at.parent is not None:
            found.append((len(at.path.ids), at.led_right))
            at = at.parent
        found.reverse()
        rest = len(path.ids) > (found[-1][0] if found else 0)
        return [*found, *([(len(path.ids), path.score >= self._cfg.right_at)] if rest else [])]


def grow(tries: Tries, cfg: Search, num_prompts: int) -> list[Path]:
    """The whole answers that the trees of all prompts found within their tokens. A prompt has one at least, unless the
    engine failed: if none was found, the likeliest place is gone on from to the end."""
    trees = [Tree(Path(prompt=number, tree=0, key="0"), cfg) for number in range(num_prompts)]
    while live := [
        tree for n, tree in enumerate(trees) if tries.tokens[n] < cfg.search_tokens and not tree.root.is_over
    ]:
        _expand(tries, cfg, live)
    bare = [tree for tree in trees if not tree.whole]
    leaves = [tree.root if tree.root.is_over else tree.leaf() for tree in bare]
    ends = tries.take([(leaf.path, f"{leaf.path.key}.end") for leaf in leaves], is_step=False) if bare else []
    for tree, leaf, end in zip(bare, leaves, ends, strict=True):
        tree.judge(leaf, [end])
    failed = [leaf.path for tree, leaf in zip(bare, leaves, strict=True) if not tree.whole]
    return [path for tree in trees for path in tree.answers()] + [
        msgspec.structs.replace(path, finish="error", error=path.error or "no way to go on could be sampled")
        for path in failed
    ]


def _expand(tries: Tries, cfg: Search, trees: list[Tree]) -> None:
    """The next steps from a leaf of each tree, judged."""
    leaves = [tree.leaf() for tree in trees]
    ways = [(leaf.path, f"{leaf.path.key}.{number}") for leaf in leaves for number in range(cfg.width)]
    steps = iter(tries.take(ways, is_step=True))
    new: list[tuple[Tree, Node]] = []
    for tree, leaf in zip(trees, leaves, strict=True):
        leaf.children = [Node(next(steps), leaf) for _ in range(cfg.width)]
        new += [(tree, child) for child in leaf.children]
    going = [child for _, child in new if not child.is_over]
    plays = [(child.path, f"{child.path.key}.p{number}") for child in going for number in range(cfg.playouts)]
    ends = tries.take(plays, is_step=False) if plays else []
    of_child = {id(child): ends[at * cfg.playouts : (at + 1) * cfg.playouts] for at, child in enumerate(going)}
    for tree, child in new:
        tree.judge(child, of_child.get(id(child), []))
        child.close()
