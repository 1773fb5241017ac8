"""The tree holds every sequence on the path to its leaf, and what is shared once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jrm_plugin.model.token_tree import token_tree

END = 9  # stands at the end of every sequence and nowhere else, as the reward token does

sequences_given = st.lists(
    st.lists(st.integers(-2, 1), max_size=12).map(lambda tokens: np.array([*tokens, END], dtype=np.int64)),
    min_size=1,
    max_size=12,
)


@given(sequences_given, st.integers(1, 4))
def test_the_path_to_a_leaf_is_the_sequence(sequences, min_shared):
    tree = token_tree(sequences, min_shared)
    for sequence, leaf in zip(sequences, tree.leaf_of, strict=True):
        path = [tree.nodes[n] for n in tree.path(leaf)]
        tokens = np.concatenate([sequences[node.sequence][node.start : node.end] for node in path])
        assert tokens.tolist() == sequence.tolist()
        assert [node.depth for node in path] == list(range(len(path)))
        assert [node.is_leaf for node in path] == [False] * (len(path) - 1) + [True]
        assert path[0].start == 0 and all(a.end == b.start for a, b in zip(path, path[1:], strict=False))


@given(sequences_given)
def test_what_is_shared_stands_once(sequences):
    """With sharing from one token on, the tree is a prefix tree: as many tokens as there are distinct beginnings."""
    beginnings = {tuple(sequence[: n + 1]) for sequence in sequences for n in range(len(sequence))}
    assert token_tree(sequences, min_shared=1).tokens == len(beginnings)


@given(sequences_given, st.integers(2, 4))
def test_only_long_runs_are_shared(sequences, min_shared):
    tree = token_tree(sequences, min_shared)
    assert all(node.end - node.start >= min_shared for node in tree.nodes if not node.is_leaf)
    assert tree.tokens <= sum(
        len(sequence) for sequence in {tuple(sequence): sequence for sequence in sequences}.values()
    )


@given(sequences_given, st.randoms(use_true_random=False))
def test_the_order_of_the_sequences_does_not_matter(sequences, random):
    shuffled = random.sample(sequences, len(sequences))
    assert token_tree(shuffled).tokens == token_tree(sequences).tokens


def test_equal_sequences_end_in_one_leaf():
    sequence = np.array([1, 2, END])
    tree = token_tree([sequence, np.array([1, 3, END]), sequence.copy()], min_shared=1)
    assert tree.leaf_of[0] == tree.leaf_of[2] != tree.leaf_of[1]
    assert len(tree.nodes) == 3


def test_a_group_is_a_tree_of_three_levels():
    """Source, candidates, dimensions: what the paper's per-dimension prompts look like with the images first."""
    source, rubrics = np.arange(100, 130), [np.arange(200, 240), np.arange(300, 340)]
    sequences = [
        np.concatenate([source, np.full(20, -candidate - 1), rubric, [END]])
        for candidate in range(4)
        for rubric in rubrics
    ]
    tree = token_tree(sequences)
    assert [sum(node.depth == depth for node in tree.nodes) for depth in range(4)] == [1, 4, 8, 0]
    assert tree.tokens == 30 + 4 * (20 + 2 * 41)


def test_a_run_that_is_too_long_becomes_several_nodes_one_behind_the_other():
    sequences = [np.r_[np.arange(100), 200 + k] for k in range(2)]
    tree = token_tree(sequences, longest_run=lambda before, tokens: min(tokens, 30))
    assert [(n.parent, n.start, n.end, n.depth) for n in tree.nodes[:4]] == [
        (-1, 0, 25, 0), (0, 25, 50, 1), (1, 50, 75, 2), (2, 75, 100, 3)
    ]  # fmt: skip
    for sequence, leaf in zip(sequences, tree.leaf_of, strict=True):
        nodes = [tree.nodes[n] for n in tree.path(leaf)]
        assert np.array_equal(np.concatenate([sequences[n.sequence][n.start : n.end] for n in nodes]), sequence)
        assert [n.is_leaf for n in nodes] == [False] * 4 + [True]
