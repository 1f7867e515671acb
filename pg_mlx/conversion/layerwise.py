"""A model larger than memory: every picture and text goes through one block before the next one is read.

The modules are those of the loaded model, filled by the loader's own code, so the numbers are the same too.

Memory, whatever the depth of the model: its embedding as the source stores it (it is looked up first and needed again
as the head, and reading it is slow; a head of its own is held beside it), one block in the compute dtype with the parts
it is assembled from, and the activations: [N + T, D] for every text, [N, D] for every picture, and a layer's inner ones
for one text at a time. A 28B model in bfloat16 has 55 GB; streaming it holds 2.4 GB of embedding, 1.1 GB of one
block and, for 16 texts at 448 pixels, 0.2 GB of activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .. import gemma, siglip
from ..attention_mask import prefix_lm_mask
from ..checkpoint.assemble import fill, fill_matrix, read_matrix
from ..checkpoint.layouts import HEAD, WeightSpec
from ..checkpoint.load import compute_dtype
from ..checkpoint.open import Checkpoint
from ..checkpoint.tensors import Source, evaluate_read
from ..config import PaliGemmaConfig
from ..linear import Embedding
from ..paligemma import PaliGemma


class AnsweredPrompt(NamedTuple):
    """A prompt about one of the pictures, and the answer whose tokens are to be predicted."""

    picture: int
    prefix: Sequence[int]
    """<bos>, prompt, newline."""
    answer: Sequence[int]
    """At least one token."""

    @property
    def read(self) -> list[int]:
        """The tokens that a decoder reads. An answer's last token predicts nothing."""
        return [*self.prefix, *self.answer[:-1]]


def mask_of(text: AnsweredPrompt, length: int) -> mx.array:
    """The mask of a text of `length` tokens, its picture's included: [1, 1, length, length], or as `prefix_lm_mask`."""
    prefix = length - len(text.answer) + 1
    return prefix_lm_mask(length, mx.array([prefix]), mx.array([length]))


class Streamed:
    """The computation of PaliGemma in three calls, to be made in this order, the first two once, `head` any number of
    times:

        features = model.features(pictures)         # encode_image
        hidden = model.hidden(features, texts)      # the decoder, at the positions that predict the answers
        logits = model.head(0, 1000)(hidden[0])     # some columns of the logits

    dtype: of activations and float weights, as for LoadOptions. progress: called after each of the `num_blocks` blocks.
    All three raise InputError for a tensor that cannot be read.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: mx.Dtype | str | None = None,
        progress: Callable[[], None] = lambda: None,
    ):
        self.config = checkpoint.config
        self.dtype = compute_dtype(dtype)
        self.num_blocks = self.config.vision.num_hidden_layers + self.config.text.num_hidden_layers
        self._source, self._specs, self._progress = checkpoint.source, checkpoint.specs, progress
        self._model = PaliGemma(self.config, dtype=self.dtype)  # placeholders, not in memory
        self._tables: dict[str, _Table] = {}

    def features(self, pictures: Sequence[mx.array]) -> list[mx.array]:
        """Pixels [1, H, W, 3] each -> features [1, N, D] each, in the compute dtype."""
        rows = self.patches(pictures)
        self._through("vision_tower", rows, lambda block, _, x: block(x))
        rows = [self.tower_output(x) for x in rows]
        self._through("connector", rows, lambda block, _, x: block(x))
        return rows

    def hidden(self, features: Sequence[mx.array], texts: Sequence[AnsweredPrompt]) -> list[mx.array]:
        """For each text the final-normed states [len(answer), D] that predict its answer's tokens, each given the
        picture, the prompt and the answer before it."""
        rows = self.decoder_inputs(features, texts)

        def run(block: gemma.Block, index: int, x: mx.array) -> mx.array:
            return block(x, mask_of(texts[index], x.shape[1]))

        self._through("language_model", rows, run)
        return self.decoder_outputs(rows, texts)

    def decoder_outputs(self, rows: Sequence[mx.array], texts: Sequence[AnsweredPrompt]) -> list[mx.array]:
        """The last block's outputs [1, N + T, D] -> what `hidden` returns."""
        self._fill_at("language_model.norm")
        norm = self._model.language_model.norm
        hidden = [norm(x[0, -len(text.answer) :]) for text, x in zip(texts, rows, strict=True)]
        mx.eval(hidden)
        return hidden

    def patches(self, pictures: Iterable[mx.array]) -> list[mx.array]:
        """Pixels [B, H, W, 3] each -> what the tower's first block reads, [B, N, C] each. Also prepares
        `tower_output`."""
        tower = self._model.vision_tower
        for name in ("patch_embedding", "position_embedding", "post_layernorm"):
            self._fill_at(f"vision_tower.{name}")
        rows = []
        for pixels in pictures:
            x = tower.patch_embedding(siglip.patches(pixels.astype(self.dtype), tower.patch_size))
            rows.append(x + tower.position_embedding)
        mx.eval(rows)
        return rows

    def tower_output(self, x: mx.array) -> mx.array:
        """The last block's output [B, N, C] -> what the connector reads, [B, N, C]."""
        return self._model.vision_tower.post_layernorm(siglip.Stream.of(x))

    def blocks(self, part: str) -> Iterator[tuple[str, Any]]:
        """The blocks of "vision_tower", "connector" or "language_model", one after the other: path and filled module.

        A block is in memory until the next is asked for; the caller must not hold it any longer.
        """
        if part == "connector":
            self._fill_at(part)
            yield part, self._model.connector
            return
        blocks: list[Any] = self._model[part].layers
        for number in range(len(blocks)):
            path = f"{part}.layers.{number}"
            self._fill_at(path)
            yield path, blocks[number]
            blocks[number] = None
            mx.clear_cache()
            self._progress()

    def head(self, start: int, stop: int) -> Callable[[mx.array], mx.array]:
        """hidden [..., D] -> float32 logits [..., stop - start], capped where the config says so. Valid until
        the next call; holds rows start..stop-1 of the head in the compute dtype."""
        decoder = self._model.language_model
        name = "embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        decoder[name] = self._rows_of(name, slice(start, stop))
        return decoder.head

    def forget_tables(self) -> None:
        """Free the embedding and the head, which are read again when they are needed."""
        self._tables.clear()
        decoder = self._model.language_model
        for name in ("embed_tokens", "lm_head"):
            if name in decoder:
                decoder[name] = Embedding(1, 1)

    def decoder_inputs(self, features: Sequence[mx.array], texts: Sequence[AnsweredPrompt]) -> list[mx.array]:
        """What the decoder's first block reads, [1, N + T, D] a text."""
        ids = [text.read for text in texts]
        known = sorted({token for row in ids for token in row})
        place = {token: index for index, token in enumerate(known)}
        self.use_embeddings(self.embeddings(known))
        rows = []
        for text, row in zip(texts, ids, strict=True):
            embedded = self.embed([[place[token] for token in row]])
            rows.append(mx.concatenate([features[text.picture], embedded], axis=1))
        mx.eval(rows)
        return rows

    def embeddings(self, tokens: Sequence[int]) -> Embedding:
        """The rows of these tokens of the decoder's embedding, as a table of their own."""
        return self._rows_of("embed_tokens", mx.array(list(tokens)))

    def table(self, name: str, start: int, stop: int) -> Embedding:
        """Some rows of the table that is stored under a canonical name, the embedding or the head of its own."""
        return self._rows_of("lm_head" if name == HEAD else "embed_tokens", slice(start, stop))

    def use_embeddings(self, table: Embedding) -> None:
        """The table that `embed` looks up in."""
        self._model.language_model.embed_tokens = table

    def embed(self, places: Sequence[Sequence[int]]) -> mx.array:
        """Places [B, T] in the table of `use_embeddings` -> what the decoder's first block reads of them, [B, T, D]."""
        return self._model.language_model.embed(mx.array([list(row) for row in places]))

    def _through(self, part: str, rows: list[mx.array], run: Callable[[Any, int, mx.array], mx.array]) -> None:
        """Replace each of the rows by run(block, its index, row), for one block after the other."""
        for _, block in self.blocks(part):
            for index, x in enumerate(rows):
                rows[index] = run(block, index, x)
                mx.eval(rows[index])  # now, or the graph would hold the block
            del block  # before the next one is read

    def _fill_at(self, path: str) -> None:
        """Read the parameters of a module (or the array) at this path."""
        for spec in self._specs:
            if f"{spec.target}.".startswith(f"{path}."):
                evaluate_read(spec.target, fill(self._model, spec, self._source, self.config, self.dtype))

    def _rows_of(self, name: str, index: slice | mx.array) -> Embedding:
        """Rows of the decoder's table of this name."""
        if name not in self._tables:
            spec = next(spec for spec in self._specs if spec.target == f"language_model.{name}")
            self._tables[name] = _Table(spec, self._source, self.config, self.dtype)
        return self._tables[name].rows(index)


class _Table:
    """The embedding or the head as it is stored; as a loaded model has it for a few rows at a time."""

    def __init__(self, spec: WeightSpec, source: Source, config: PaliGemmaConfig, dtype: mx.Dtype):
        self._columns, self._dtype = spec.columns, dtype
        self._name = name = spec.sources[0]
        if f"{name}.scales" in source.shapes:
            self._quantization, self._arrays = read_matrix(spec, name, source, config, dtype)
        else:  # read as a loaded model does, it would be cast, which may double it
            self._quantization, self._arrays = None, {"weight": source.read(f"{name}.weight")}

    def rows(self, index: slice | mx.array) -> Embedding:
        # All arrays have the table's rows, but for an adapter's `down`.
        chosen = {name: array if name == "down" else array[index] for name, array in self._arrays.items()}
        if self._quantization is None:
            chosen["weight"] = chosen["weight"].astype(self._dtype)
        table = Embedding(chosen["weight"].shape[0], self._columns)
        fill_matrix(table, [(self._quantization, chosen)])
        evaluate_read(self._name, table.parameters())
        return table
