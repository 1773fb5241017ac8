"""The engine on a token tree: sequences for the price of what differs between them.

A group of candidates shares its source image, its instruction and its rubric. Each distinct image is encoded once, and
each distinct beginning of the sequences is computed once: the sequences become a tree (`token_tree`), and its nodes are
computed level by level, every node on the attention keys and values of the tokens before it. All nodes of a level that
fit into the memory budget are one batch. The final norm runs on reward tokens only.

Three words of a pass over the tree. A token's *symbol* says what it is (`token_tree`). Attention keys and values are
*kept* for tokens that something stands behind, all in one store a layer. A token's *slot* is its place in that store;
what stands before a node are the slots of the nodes above it.

Shape suffixes: B sequences, N nodes of a batch, S tokens of a node, P tokens before it, T tokens kept, F image tokens,
K key-value heads, C channels of a head, H hidden.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from jrm_plugin.kernels import check_reward_token_counts, pool_reward_tokens
from jrm_plugin.model.backbone import BackboneParts
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import EncodedImage, EncodedSequence, JRMProcessor
from jrm_plugin.model.token_tree import TokenTree, feature_rows, symbols, token_tree
from jrm_plugin.scoring.sampling import Sampling, until

logger = logging.getLogger(__name__)

GIB = 2**30
# A batch takes nodes of similar length: one padded by more than this share starts another batch.
MAX_PADDING = 0.25
# Large batches are for GPUs. On CPU glibc hands large blocks back to the system when they are freed, so that every
# operation of a larger batch writes to fresh pages, and the faults take nearly half of the time.
CPU_BATCH_BYTES = 64 * 2**20

# A run of tokens that is too large for the memory budget is computed in pieces, none of them shorter than this.
SHORTEST_RUN = 64


class FeatureCache:
    """Image features by the image's content, the least recently used ones dropped beyond `max_bytes`.

    `hits` and `misses` count images asked for.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes, self.hits, self.misses = max_bytes, 0, 0, 0
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    @property
    def hit_rate(self) -> float:
        """The share of images asked for that were here; 0 before any was."""
        return self.hits / max(self.hits + self.misses, 1)

    def get(self, digest: bytes) -> torch.Tensor | None:
        features = self._features.get(digest)
        if features is None:
            self.misses += 1
        else:
            self.hits += 1
            self._features.move_to_end(digest)
        return features

    def put(self, digest: bytes, features: torch.Tensor) -> None:
        if digest in self._features:
            self.bytes -= self._features.pop(digest).nbytes
        self._features[digest] = features
        self.bytes += features.nbytes
        while self.bytes > self.max_bytes and self._features:
            _, dropped = self._features.popitem(last=False)
            self.bytes -= dropped.nbytes

    def clear(self) -> None:
        self._features.clear()
        self.bytes = 0


@dataclass
class _KeyValues:
    """Keys and values of all tokens that something stands behind, `[T, K, C]` for each layer."""

    tokens: int
    keys: list[torch.Tensor | None]
    values: list[torch.Tensor | None]


class _PrefixCache(DynamicCache):
    """Hands a layer the keys and values before each node, and keeps those of the node's own tokens.

    One layer's at a time are copied out, so that a prefix costs its memory once and not once for each candidate.
    """

    is_compileable = False

    def __init__(self, kept: _KeyValues, prefix_NP: torch.Tensor, own_index: list[torch.Tensor]):
        super().__init__()
        self.kept, self.prefix_NP, self.own_index = kept, prefix_NP, own_index

    def update(self, key_NKSC, value_NKSC, layer_idx, *_, **__):
        return tuple(
            self._extend(store, layer_idx, new_NKSC)
            for store, new_NKSC in ((self.kept.keys, key_NKSC), (self.kept.values, value_NKSC))
        )

    def _extend(self, store, layer, new_NKSC):
        if self.own_index:
            row_M, place_M, slot_M = (index.to(new_NKSC.device) for index in self.own_index)
            if store[layer] is None:
                _, K, _, C = new_NKSC.shape
                store[layer] = new_NKSC.new_empty(self.kept.tokens, K, C)
            store[layer][slot_M] = new_NKSC[row_M, :, place_M]
        if self.prefix_NP.shape[1] == 0:
            return new_NKSC
        prefix_NKPC = store[layer][self.prefix_NP.to(new_NKSC.device)].transpose(1, 2)
        return torch.cat([prefix_NKPC, new_NKSC], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.prefix_NP.shape[1]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.prefix_NP.shape[1] + query_length, 0


@dataclass
class _Computed:
    """What a pass over the tree leaves behind.

    `next_position_B` is the rotary position behind each sequence's last token, in all three dimensions.
    """

    tree: TokenTree
    reward_BH: torch.Tensor
    last_BH: torch.Tensor
    kept: _KeyValues
    slots: list[np.ndarray]  # of each node
    next_position_B: list[int]


class SharedPrefixEngine:
    """Computes the reward tokens' hidden states of sequences that share beginnings, and continues them.

    Args:
        model: its backbone's structure must be known (`BackboneParts.known`).
        processor: of the model.
        memory_budget: bytes that a pass may take beside the weights (estimated from shapes). On a GPU that runs out of
            memory all the same, it is halved and the pass repeated.
        cache_bytes: image features kept for later calls.
    """

    def __init__(self, model: JRMForRewardModeling, processor: JRMProcessor, *, memory_budget: int, cache_bytes: int):
        self.model, self.processor, self.memory_budget = model, processor, memory_budget
        self.features = FeatureCache(cache_bytes)
        self._parts = BackboneParts(model.backbone)
        self._vision_weights = self._parts.vision_weights()  # those that the kept features were made with

    def __repr__(self) -> str:
        return (
            f"SharedPrefixEngine(memory_budget={self.memory_budget / GIB:.3g} GiB, "
            f"image features kept={self.features.bytes / GIB:.3g} of {self.features.max_bytes / GIB:.3g} GiB)"
        )

    # -- memory, in bytes

    def sequence_bytes(self, sequences: Sequence[EncodedSequence]) -> int:
        """An upper bound of what sequences hold in memory while others are computed: keys and values, and pixels."""
        tokens = sum(len(sequence.prompt) for sequence in sequences)
        images = {id(image): image for sequence in sequences for image in sequence.images}
        return tokens * self._kv_bytes() + sum(image.pixel_values.nbytes for image in images.values())

    def _kv_bytes(self) -> int:
        parts = self._parts
        return 2 * parts.layer_count * parts.kv_heads * parts.head_width * self.model.dtype.itemsize

    def _bytes_at_once(self) -> int:
        """What one batch may take; the other half of the budget is for what is held from batch to batch."""
        limit = self.memory_budget // 2
        if self.model.device.type != "cpu":
            return limit
        # a batch reads a layer's weights, so one that is small beside them would not pay for itself
        return min(limit, max(CPU_BATCH_BYTES, sum(weight.nbytes for weight in self._parts.layers[0].parameters())))

    def _batch_bytes(self, N: int, S: int, P: int) -> int:
        """Activations of one layer for a batch of nodes, the largest of what is alive at once."""
        parts = self._parts
        heads = parts.heads + 2 * parts.kv_heads
        per_token = 8 * parts.hidden + 3 * parts.mlp_width + 4 * heads * parts.head_width
        attended = 2 * (P + S) * heads * parts.head_width
        eager, _ = parts.attends_eagerly
        scores = S * (P + S) * (3 * parts.heads if eager else 1)
        return N * (S * per_token + attended + scores) * max(self.model.dtype.itemsize, 4 if eager else 1)

    def _longest_run(self, before: int, tokens: int) -> int:
        """How many tokens behind `before` others may be computed at once: `tokens`, or as many as the budget allows."""
        while tokens > SHORTEST_RUN and self._batch_bytes(1, tokens, before) > self.memory_budget // 2:
            tokens = max(SHORTEST_RUN, tokens // 2)
        return tokens

    def _vision_bytes(self, patches: int) -> int:
        parts = self._parts
        _, eager = parts.attends_eagerly
        per_patch = 8 * parts.vision_width + 4 * parts.vision_mlp_width
        return patches * (per_patch + (patches * parts.vision_heads * 2 if eager else 0)) * 4

    # -- scores

    def hidden_states(self, sequences: Sequence[EncodedSequence]) -> torch.Tensor:
        """The reward token's final hidden state of every sequence, `[B, H]`.

        Nothing behind the reward token is computed.

        Raises:
            ValueError: a sequence has not exactly one reward token.
        """
        reward = self.model.config.reward_token_id
        return self._retrying(
            lambda: self._compute(sequences, [s.prompt.index(reward) + 1 for s in sequences], False).reward_BH
        )

    def _retrying(self, compute):
        while True:
            try:
                return compute()
            except torch.OutOfMemoryError:
                if self.memory_budget < 2**20:
                    raise
                self.memory_budget //= 2
                logger.warning(
                    "The GPU ran out of memory: the memory budget is halved to %.3g GiB, and the pass is repeated.",
                    self.memory_budget / GIB,
                )
                torch.cuda.empty_cache()

    def _compute(self, sequences: Sequence[EncodedSequence], lengths: Sequence[int], keep_all: bool) -> _Computed:
        """One pass over the tree of the first `lengths` tokens; keys and values of leaves are kept if asked for."""
        features, row_of = self._image_features(sequences)
        symbol_BL = [self._symbols(s, row_of)[:length] for s, length in zip(sequences, lengths, strict=True)]
        tree = token_tree(symbol_BL, longest_run=self._longest_run)
        position_3L = self._positions(sequences, tree)

        slots, tokens = [], 0
        for node in tree.nodes:
            size = node.end - node.start if keep_all or not node.is_leaf else 0
            slots.append(np.arange(tokens, tokens + size))
            tokens += size
        layers = self._parts.layer_count
        kept = _KeyValues(tokens, [None] * layers, [None] * layers)

        reward_by_leaf: dict[int, torch.Tensor] = {}
        last_by_leaf: dict[int, torch.Tensor] = {}
        counts: list[torch.Tensor] = []
        for batch in self._batches(tree):
            nodes = [tree.nodes[n] for n in batch]
            symbol_NS = _padded([symbol_BL[node.sequence][node.start : node.end] for node in nodes])
            prefixes = [_joined([slots[above] for above in tree.path(n)[:-1]]) for n in batch]
            hidden_NSH, id_NS = self._run(
                symbol_NS,
                lengths=[node.end - node.start for node in nodes],
                position_3NS=np.stack(
                    [_padded([position_3L[n.sequence][axis, n.start : n.end] for n in nodes]) for axis in range(3)]
                ),
                prefixes=prefixes,
                own_slots=[slots[n] for n in batch],
                kept=kept,
                features=features,
            )
            leaves = [k for k, node in enumerate(nodes) if node.is_leaf]
            if not leaves:
                continue
            at = torch.tensor(leaves, device=hidden_NSH.device)
            pooled_NKH, count_N = pool_reward_tokens(
                hidden_NSH[at], id_NS[at], self.model.config.reward_token_id, return_counts=True
            )
            counts.append(count_N)
            norm = self._parts.norm
            reward_NH = norm(pooled_NKH.squeeze(1))
            ends = torch.tensor([nodes[k].end - nodes[k].start - 1 for k in leaves], device=at.device)
            last_NH = norm(hidden_NSH[at, ends]) if keep_all else reward_NH
            for k, reward_H, last_H in zip(leaves, reward_NH, last_NH, strict=True):
                reward_by_leaf[batch[k]], last_by_leaf[batch[k]] = reward_H, last_H
        check_reward_token_counts(torch.cat(counts))  # once for all, because it waits for the device
        return _Computed(
            tree,
            torch.stack([reward_by_leaf[leaf] for leaf in tree.leaf_of]),
            torch.stack([last_by_leaf[leaf] for leaf in tree.leaf_of]),
            kept,
            slots,
            [int(position_3L[tree.nodes[leaf].sequence][:, : tree.nodes[leaf].end].max()) + 1 for leaf in tree.leaf_of],
        )

    def _run(
        self, symbol_NS, *, lengths, position_3NS, prefixes, own_slots, kept, features
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The decoder layers on a batch of nodes: hidden states before the final norm, `[N, S, H]`, and token ids."""
        device = self.model.device
        N, S = symbol_NS.shape
        P = max(map(len, prefixes))
        # where images stand is known here, so that the device need not be asked, which would mean to wait for it
        is_image_NS = symbol_NS < 0
        image_n_F, image_s_F = (torch.from_numpy(index).to(device) for index in is_image_NS.nonzero())
        row_F = torch.from_numpy(feature_rows(symbol_NS[is_image_NS])).to(device)
        id_NS = np.where(is_image_NS, self._parts.image_token_id, symbol_NS)
        hidden_NSH = self._parts.embed(torch.from_numpy(id_NS).to(device))
        is_padding_NS = np.arange(S) >= np.array(lengths)[:, None]
        id_NS = torch.from_numpy(np.where(is_padding_NS, -1, id_NS)).to(device)  # it may repeat a reward token

        # prefixes stand right before their nodes, so that padding is left of them and right of the node's tokens
        prefix_NP = np.zeros((N, P), dtype=np.int64)
        valid_N = np.ones((N, P + S), dtype=bool)
        for n, (prefix, length) in enumerate(zip(prefixes, lengths, strict=True)):
            prefix_NP[n] = _padded_left(prefix, P)
            valid_N[n, : P - len(prefix)] = False
            valid_N[n, P + length :] = False
        stored = [
            (np.full(len(slots), n), np.arange(len(slots)), slots) for n, slots in enumerate(own_slots) if len(slots)
        ]
        where = [torch.from_numpy(np.concatenate(part)).to(device) for part in zip(*stored, strict=True)]
        cache = _PrefixCache(kept, torch.from_numpy(prefix_NP).to(device), where)
        hidden_NSH = self._parts.decode(
            hidden_NSH,
            position_3NS=torch.from_numpy(position_3NS).to(device),
            mask=self._parts.causal_mask(
                hidden_NSH, None if valid_N.all() else torch.from_numpy(valid_N).to(device), cache
            ),
            cache=cache,
            image_index=(image_n_F, image_s_F),
            image_features_FDH=features[row_F] if len(row_F) else None,
        )
        return hidden_NSH, id_NS

    def _batches(self, tree: TokenTree) -> Iterator[list[int]]:
        """Nodes level by level, those of similar shape together, as many as may be computed at once."""
        limit = self._bytes_at_once()
        by_depth: dict[int, list[tuple[int, int, int]]] = {}
        for n, node in enumerate(tree.nodes):
            by_depth.setdefault(node.depth, []).append((node.start, node.end - node.start, n))
        for depth in sorted(by_depth):
            batch, P, S, tokens = [], 0, 0, 0
            for before, own, n in sorted(by_depth[depth]):
                P, S, tokens = max(P, before), max(S, own), tokens + before + own
                too_padded = (len(batch) + 1) * (P + S) > (1 + MAX_PADDING) * tokens
                if batch and (too_padded or self._batch_bytes(len(batch) + 1, S, P) > limit):
                    yield batch
                    batch, P, S, tokens = [], before, own, before + own
                batch.append(n)
            yield batch

    def _symbols(self, sequence: EncodedSequence, row_of: dict[bytes, int]) -> np.ndarray:
        rows = [np.arange(image.tokens) + row_of[image.digest] for image in sequence.images]
        return symbols(sequence.prompt, self._parts.image_token_id, rows)

    def _positions(self, sequences: Sequence[EncodedSequence], tree: TokenTree) -> dict[int, np.ndarray]:
        """The rotary positions of the sequences that nodes are taken from, `[3, L]` each."""
        rope_positions = self.model.config.rope_positions
        sampled = {k: sequences[k] for k in {node.sequence for node in tree.nodes}}
        return {
            k: self._parts.rope_positions(s.prompt, [image.grid_thw for image in s.images], rope_positions)
            for k, s in sampled.items()
        }

    # -- attention

    def attention(self, sequences: Sequence[EncodedSequence]) -> list[torch.Tensor]:
        """How the reward token of every sequence attends to its tokens up to itself: `[layers, heads, L]` each."""
        return self._retrying(lambda: self._attention(sequences))

    def _attention(self, sequences: Sequence[EncodedSequence]) -> list[torch.Tensor]:
        reward = self.model.config.reward_token_id
        lengths = [sequence.prompt.index(reward) + 1 for sequence in sequences]
        computed = self._compute(sequences, lengths, True)
        positions = self._positions(sequences, computed.tree)
        embedding_11H = self._parts.embed(torch.tensor([[reward]], device=self.model.device))
        rows = []
        for b, length in enumerate(lengths):
            leaf = computed.tree.leaf_of[b]
            before = _joined([computed.slots[n] for n in computed.tree.path(leaf)])[:-1]
            position_3L = positions[computed.tree.nodes[leaf].sequence]
            position_311 = torch.from_numpy(position_3L[:, length - 1].copy()).view(3, 1, 1).to(self.model.device)
            cache = _cache_of(computed.kept, before[None])
            rows.append(self._parts.attention(embedding_11H, position_311=position_311, cache=cache))
        return rows

    # -- images

    def _image_features(self, sequences: Sequence[EncodedSequence]) -> tuple[torch.Tensor | None, dict[bytes, int]]:
        """Features of every distinct image, `[F, 1 + deep layers, H]`, and the first row of each."""
        weights = self._parts.vision_weights()
        if weights != self._vision_weights:  # the model is being trained, or was moved
            self.features.clear()
            self._vision_weights = weights
        images = {image.digest: image for sequence in sequences for image in sequence.images}
        features = {digest: self.features.get(digest) for digest in images}
        missing = [digest for digest, of_image in features.items() if of_image is None]
        while missing:
            batch = [missing.pop()]
            patches = len(images[batch[0]].pixel_values)
            while missing:
                patches += len(images[missing[-1]].pixel_values)
                if self._vision_bytes(patches) > self.memory_budget // 2:
                    break
                batch.append(missing.pop())
            for digest, of_image in zip(batch, self._encode([images[digest] for digest in batch]), strict=True):
                features[digest] = of_image
                self.features.put(digest, of_image)
        rows = np.cumsum([0, *map(len, features.values())])
        row_of = dict(zip(features, rows.tolist(), strict=False))
        return torch.cat(list(features.values())) if features else None, row_of

    def _encode(self, images: Sequence[EncodedImage]) -> list[torch.Tensor]:
        device = self.model.device
        features = self._parts.image_features(
            torch.cat([image.pixel_values for image in images]).to(device),
            torch.stack([image.grid_thw for image in images]).to(device),
        )
        return [part.clone() for part in features.split([image.tokens for image in images])]

    # -- text

    def generate(
        self, sequences: Sequence[EncodedSequence], *, max_new_tokens: int, sampling: Sampling | None = None
    ) -> list[list[int] | None]:
        """Continues every sequence from its keys and values: with the likeliest tokens, or as `sampling` draws them.

        Returns:
            New token ids of each sequence, without the one that ends it; None where its logits are not finite.
        """
        return self._retrying(lambda: self._generate(sequences, max_new_tokens, sampling))

    def _generate(
        self, sequences: Sequence[EncodedSequence], max_new_tokens: int, sampling: Sampling | None
    ) -> list[list[int] | None]:
        computed = self._compute(sequences, [len(sequence.prompt) for sequence in sequences], True)
        longest = max(len(sequence.prompt) for sequence in sequences) + max_new_tokens
        at_once = max(1, self.memory_budget // 2 // (longest * self._kv_bytes()))
        written: list[list[int] | None] = []
        for start in range(0, len(sequences), at_once):
            rows = range(start, min(start + at_once, len(sequences)))
            written += self._continue(computed, rows, max_new_tokens, sampling)
        return written

    def _continue(
        self, computed: _Computed, rows: range, max_new_tokens: int, sampling: Sampling | None
    ) -> list[list[int] | None]:
        device, eos_token_id = self.model.device, self.processor.tokenizer.eos_token_id
        tree = computed.tree
        prefixes = [_joined([computed.slots[n] for n in tree.path(tree.leaf_of[b])]) for b in rows]
        P = max(map(len, prefixes))
        prefix_NP = np.stack([_padded_left(prefix, P) for prefix in prefixes])
        valid_NP = np.stack([np.arange(P) >= P - len(prefix) for prefix in prefixes])
        cache = _cache_of(computed.kept, prefix_NP)

        valid_NL = torch.from_numpy(valid_NP).to(device)
        position_N = torch.tensor([computed.next_position_B[b] for b in rows], device=device)
        ended_N = torch.zeros(len(rows), dtype=torch.bool, device=device)
        finite_N = ~ended_N
        last_NH = computed.last_BH[rows.start : rows.stop]
        new: list[torch.Tensor] = []
        for step in range(max_new_tokens):
            logits_NV = self.model.get_output_embeddings()(last_NH).float()
            finite_N &= logits_NV.isfinite().all(-1) | ended_N
            logits_NV = logits_NV.masked_fill(~finite_N.unsqueeze(1), 0.0)  # nothing can be drawn from NaN
            if sampling is None:
                token_N = logits_NV.argmax(-1)
            else:
                so_far_NL = torch.stack(new, 1) if new else ended_N.new_empty(len(rows), 0, dtype=torch.int64)
                token_N = sampling.draw(so_far_NL, logits_NV)
            token_N = token_N.masked_fill(ended_N | ~finite_N, eos_token_id)
            ended_N |= token_N == eos_token_id
            new.append(token_N)
            if ended_N.all() or step == max_new_tokens - 1:
                break
            valid_NL = torch.nn.functional.pad(valid_NL, (0, 1), value=True)
            embedding_N1H = self._parts.embed(token_N.unsqueeze(1))
            hidden_N1H = self._parts.decode(
                embedding_N1H,
                position_3NS=(position_N + step).view(1, -1, 1).expand(3, -1, -1),
                mask=self._parts.causal_mask(embedding_N1H, valid_NL, cache),
                cache=cache,
            )
            last_NH = self._parts.norm(hidden_N1H)[:, 0]
        written = zip(torch.stack(new, 1).tolist(), finite_N.tolist(), strict=True)
        return [until(row, eos_token_id) if is_finite else None for row, is_finite in written]


def _cache_of(kept: _KeyValues, slot_NP: np.ndarray) -> DynamicCache:
    """The keys and values of these slots, as the library keeps them."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(kept.keys, kept.values, strict=True)):
        index_NP = torch.from_numpy(slot_NP).to(key.device)
        cache.update(key[index_NP].transpose(1, 2), value[index_NP].transpose(1, 2), layer)
    return cache


# Padding repeats what stands at the row's own end. Attention gives it a weight of 0, and 0 times a value that is not
# finite is not a number: a row whose values are not finite must not be what pads another one.


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    length = max(map(len, rows))
    return np.stack([np.pad(row, (0, length - len(row)), mode="edge") for row in rows]).astype(np.int64)


def _padded_left(row: np.ndarray, length: int) -> np.ndarray:
    return np.pad(row, (length - len(row), 0), mode="edge") if len(row) else np.zeros(length, dtype=np.int64)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
