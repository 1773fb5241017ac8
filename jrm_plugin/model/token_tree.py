"""The plan of a pass, in scoring and training: sequences that begin alike become a tree, what they share stands once.

Sequences are arrays of symbols, one for each token; equal symbols mean equal inputs to the model. A token's symbol is
its id, or, for an image token, the row of its features as a negative number. A node is a run of tokens that follows all
the tokens of its ancestors. The tokens of the path to a sequence's leaf are the sequence.

Shape suffixes: L length of a sequence, P tokens before a node.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# A shared run shorter than this is computed anew in each branch: a node of its own would cost more than its tokens.
MIN_SHARED_TOKENS = 16


@dataclass(frozen=True)
class Node:
    """The tokens `start` to `end - 1` of `sequence` (one of those that run through it), behind the node `parent`.

    `parent` is -1 for a root. `depth` counts ancestors; `is_leaf` nodes end their sequences.
    """

    parent: int
    sequence: int
    start: int
    end: int
    depth: int
    is_leaf: bool


@dataclass(frozen=True)
class TokenTree:
    """Nodes, parents before children, and for each sequence the node it ends in."""

    nodes: list[Node]
    leaf_of: list[int]

    @property
    def tokens(self) -> int:
        return sum(node.end - node.start for node in self.nodes)

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The nodes right behind each node; behind -1, the roots."""
        children: dict[int, list[int]] = {n: [] for n in range(-1, len(self.nodes))}
        for n, node in enumerate(self.nodes):
            children[node.parent].append(n)
        return children

    def path(self, node: int) -> list[int]:
        """The nodes from the root down to `node`, which is the last."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.nodes[node].parent
        return path[::-1]


def symbols(ids: Sequence[int], image_token_id: int, rows: Sequence[np.ndarray]) -> np.ndarray:
    """A symbol for every token, `[L]`: its id, or for an image token -1 less the row of its features.

    Args:
        ids: of the sequence's tokens.
        image_token_id: the placeholder's.
        rows: of each of its images, in their order, the rows in which the features of its tokens stand.
    """
    symbol_L = np.array(ids, dtype=np.int64)
    if rows:
        symbol_L[symbol_L == image_token_id] = -1 - np.concatenate(rows)
    return symbol_L


def feature_rows(symbol: np.ndarray) -> np.ndarray:
    """The rows of features that the symbols of image tokens name: undoes what [`symbols`] did."""
    return -1 - symbol


def token_tree(
    sequences: Sequence[np.ndarray],
    min_shared: int = MIN_SHARED_TOKENS,
    longest_run: Callable[[int, int], int] = lambda before, tokens: tokens,
) -> TokenTree:
    """The tree of these sequences of int64 symbols, none empty; a sequence must not be the beginning of a longer one.

    (Scored sequences are not, because each ends with its only reward token.) Equal sequences end in one leaf. A shared
    beginning of fewer than `min_shared` tokens is not shared. `longest_run(before, tokens)` says how many of `tokens`
    behind `before` others a node may have: a longer run becomes several nodes, one behind the other.
    """
    # any order does in which sequences that begin alike are neighbours
    order = sorted(range(len(sequences)), key=lambda k: sequences[k].astype(">i8").tobytes())
    shared = [0] + [_common_prefix(sequences[a], sequences[b]) for a, b in zip(order, order[1:], strict=False)]
    nodes: list[Node] = []
    leaf_of = [-1] * len(sequences)

    # ranges of `order` that share their first `start` tokens, which stand in `parent` and its ancestors
    pending = [(0, len(order), 0, -1, 0)]
    while pending:
        low, high, start, parent, depth = pending.pop()
        if low == high:
            continue
        first, length = order[low], len(sequences[order[low]])
        common = min(shared[low + 1 : high], default=length)
        if common == length:  # one sequence, perhaps several times
            nodes += _run(Node(parent, first, start, length, depth, True), len(nodes), longest_run)
            for k in order[low:high]:
                leaf_of[k] = len(nodes) - 1
            continue
        if common - start >= min_shared:
            nodes += _run(Node(parent, first, start, common, depth, False), len(nodes), longest_run)
            start, parent, depth = common, len(nodes) - 1, nodes[-1].depth + 1
        cuts = [low, *(k for k in range(low + 1, high) if shared[k] == common), high]
        pending += [(a, b, start, parent, depth) for a, b in zip(cuts, cuts[1:], strict=False)]
    return TokenTree(nodes, leaf_of)


def _run(node: Node, number: int, longest_run: Callable[[int, int], int]) -> list[Node]:
    """The node, which will be the tree's node `number`, or several of nearly one length in its place."""
    count = -(-(node.end - node.start) // longest_run(node.start, node.end - node.start))
    cuts = np.linspace(node.start, node.end, count + 1).round().astype(int).tolist()
    return [
        Node(
            parent=node.parent if k == 0 else number + k - 1,
            sequence=node.sequence,
            start=cuts[k],
            end=cuts[k + 1],
            depth=node.depth + k,
            is_leaf=node.is_leaf and k == count - 1,
        )
        for k in range(count)
    ]


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length
