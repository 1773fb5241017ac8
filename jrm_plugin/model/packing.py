"""The packed form of a batch: what its sequences share at their beginnings is computed once, in training too.

The candidates of one prompt share its images and, by the layout, a longer beginning. Their sequences become a tree
(`token_tree`), and trees become rows of tokens, parents before children. A token sees those before it in its row that
it stands behind in the tree. So every token sees what it sees in its own sequence and has the position that it has
there; a critique is what stands behind its reward token. Each distinct image is encoded once.

Which sequences share a row is a question of cost. FlexAttention computes only what is seen: all stand in one row. Where
the mask is a matrix, a row costs its square, also for what nobody sees: the trees are cut at the depth at which the
rows cost least, each row with all that stands above the cut. Cut at the leaves, each sequence has a row of its own.

Shape suffixes: B sequences, L length, R rows, S tokens of a row, F image tokens of the rows, I distinct images.
"""

from collections.abc import Sequence

import numpy as np
import torch

from jrm_plugin.model.backbone import SDPA_OR_FLEX, TokenCosts
from jrm_plugin.model.token_tree import Node, TokenTree, feature_rows, symbols, token_tree

# Ends every sequence and is no token's symbol: without it a sequence might be the beginning of another one.
END = np.iinfo(np.int64).min


class Row:
    """The subtrees of some nodes of a tree in one row of tokens, behind all that stands above them.

    `begin` and `end`: of each node the place of its first token, and the place where what stands behind it ends.
    `branches` says whether anything in the row is not seen by what stands after it.
    """

    def __init__(self, tree: TokenTree, roots: Sequence[int]):
        self._tree = tree
        self.tokens, self.branches = 0, len(roots) > 1
        self.begin: dict[int, int] = {}
        self.end: dict[int, int] = {}
        above = tree.path(roots[0])[:-1]
        for n in above:
            self._append(n)
        for n in roots:
            self._append_subtree(n)
        self.end |= dict.fromkeys(above, self.tokens)

    def _append(self, n: int) -> None:
        self.begin[n] = self.tokens
        self.tokens += token_count(self._tree.nodes[n])

    def _append_subtree(self, n: int) -> None:
        self._append(n)
        children = self._tree.children[n]
        self.branches |= len(children) > 1
        for child in children:
            self._append_subtree(child)
        self.end[n] = self.tokens


def token_count(node: Node) -> int:
    """Tokens of a node, without the END of a leaf."""
    return node.end - node.start - node.is_leaf


def cheapest_rows(tree: TokenTree, costs: TokenCosts) -> list[Row]:
    """The tree in rows, cut where it costs least by the attention that computes it."""
    if costs.attention == SDPA_OR_FLEX:
        return [Row(tree, tree.children[-1])]
    cuts = []
    for depth in range(max(node.depth for node in tree.nodes) + 1):
        roots = [n for n, node in enumerate(tree.nodes) if node.depth == depth or (node.is_leaf and node.depth < depth)]
        cuts.append([Row(tree, [n]) for n in roots])
    return min(cuts, key=lambda rows: cost(rows, costs))


def cost(rows: Sequence[Row], costs: TokenCosts) -> float:
    """FLOPs of one layer on rows that are padded to the longest; a causal order without branches costs half a mask."""
    S = max(row.tokens for row in rows)
    is_causal = costs.attention == "sdpa" and not any(row.branches for row in rows)
    return len(rows) * S * (costs.per_token + S * costs.per_pair / (2 if is_causal else 1))


def pack(
    id_BL: Sequence[Sequence[int]],
    images_B: Sequence[Sequence[tuple[bytes, int]]],
    image_token_id: int,
    costs: TokenCosts,
) -> dict[str, torch.Tensor]:
    """The plan by which `JRMForRewardModeling` computes a batch in its packed form.

    Args:
        id_BL: token ids of the batch's sequences, which are padded on the right.
        images_B: a digest and the number of tokens of each of their images.
        image_token_id: the placeholder's.
        costs: of the model that computes it.

    Returns:
        `token_RS`: the place of each packed token in the batch, `0` to `B * L - 1`. `place_BL`: the place of each token
        of the batch among the packed ones, `0` to `R * S - 1`. `image_3F`: row and place of each packed image token,
        and the row of its features. `image_I`: the first of equal images among those of all sequences; only these are
        encoded. `end_RS`: see `BackboneParts.tree_mask`; absent where no row branches.
    """
    images = [image for images in images_B for image in images]
    first_of = {digest: k for k, (digest, _) in reversed(list(enumerate(images)))}
    distinct = sorted(first_of.values())
    rows_of, count = {}, 0
    for digest, tokens in (images[k] for k in distinct):
        rows_of[digest] = np.arange(count, count + tokens)
        count += tokens
    symbol_BL = [
        np.append(symbols(ids, image_token_id, [rows_of[digest] for digest, _ in images]), END)
        for ids, images in zip(id_BL, images_B, strict=True)
    ]
    tree = token_tree(symbol_BL)
    rows = cheapest_rows(tree, costs)

    L, S = max(map(len, symbol_BL)) - 1, max(row.tokens for row in rows)
    token_RS = np.zeros((len(rows), S), dtype=np.int64)
    symbol_RS = np.zeros_like(token_RS)
    end_RS = np.arange(1, S + 1)[None].repeat(len(rows), 0)  # padding is seen by itself alone
    place_BL = np.zeros((len(id_BL), L), dtype=np.int64)
    row_of_leaf = {}
    for r, row in enumerate(rows):
        for n, begin in row.begin.items():
            node, here = tree.nodes[n], slice(begin, begin + token_count(tree.nodes[n]))
            tokens = np.arange(node.start, node.start + token_count(node))
            token_RS[r, here] = node.sequence * L + tokens
            symbol_RS[r, here] = symbol_BL[node.sequence][tokens]
            end_RS[r, here] = row.end[n]
            if node.is_leaf:
                row_of_leaf[n] = r
    for b, leaf in enumerate(tree.leaf_of):
        r = row_of_leaf[leaf]
        for n in tree.path(leaf):
            node, begin = tree.nodes[n], r * S + rows[r].begin[n]
            place_BL[b, node.start : node.start + token_count(node)] = begin + np.arange(token_count(node))
    row_F, place_F = (symbol_RS < 0).nonzero()
    plan = {
        "token_RS": token_RS,
        "place_BL": place_BL,
        "image_3F": np.stack([row_F, place_F, feature_rows(symbol_RS[row_F, place_F])]),
        "image_I": np.array(distinct, dtype=np.int64),
    }
    if any(row.branches for row in rows):
        plan["end_RS"] = end_RS
    return {name: torch.from_numpy(array) for name, array in plan.items()}
