"""All parts of a report, in the order in which they are asked: those about one model stand together."""

from __future__ import annotations

from functools import partial

from . import buffers, checks, products, requests, small, steps, weights
from .context import Part

PLAN = (
    Part(
        "float32",  # the first: parts that compute in float32 switch TF32 off
        "Do float32 products keep all their bits?",
        "If they keep those of TF32 only (an M5), set MLX_ENABLE_TF32=0 where float32 must be exact to 1e-4. "
        "`--dtype float32` sets it by itself.",
        2,
        small.exact_float32,
    ),
    Part(
        "checks",
        "Is every kernel and every answer right?",
        "If anything is wrong, use no result of this machine, and send this report.",
        40,
        checks.healthy,
    ),
    Part(
        "layer_norm",
        "Does writing outside its array harm MLX's LayerNorm of width 1152?",
        "If the error is below 1e-3 and all repetitions are equal, it does no harm here. Else the vision tower "
        "is wrong on this machine: send this report, also to MLX.",
        5,
        small.layer_norm,
    ),
    Part(
        "overheads",
        "What do a small kernel, a command buffer and waiting cost?",
        "These figures replace the assumed ones in docs/metal.md (2 to 3 µs, 8 to 10 µs, 40 to 50 µs). If a "
        "small kernel costs less than 1 µs, fewer kernels are not worth an option.",
        14,
        small.overheads,
    ),
    Part(
        "rates",
        "How fast does it multiply, and in which 16 bits?",
        "If float16 is more than 1.1 times as fast as bfloat16 (M1, M2) and the part `float16` says yes, --dtype "
        "float16 shortens the first token.",
        10,
        small.multiplying,
    ),
    Part(
        "float16",
        "Does float16 hold the activations?",
        "If not, never use --dtype float16 with this model. The demo says nothing about other models: give yours with "
        "--model.",
        10,
        weights.float16,
    ),
    Part(
        "folding",
        "What would folding norms into matrices cost in quality?",
        "If the error grows by less than 1.02 times, conversion could fold norms in packed models, which saves 2 "
        "kernels a layer. The demo says nothing about other models: give a float one with --model.",
        10,
        weights.folding,
    ),
    Part(
        "unpack_rows",
        "From how many rows on is it faster to unpack a matrix first?",
        "Set PG_MLX_UNPACK_ROWS to the number found for 4 bits, or to 0 if it says never. Without it the number "
        "is 512.",
        40,
        products.unpacking,
    ),
    Part(
        "largest",
        "Are the largest matrices of all models read right, and how fast?",
        "An error above 0.05 is a fault of large offsets: do not use models of that size. Bytes a second should "
        "be near the speed of copying.",
        20,
        products.largest,
    ),
    Part(
        "width_2304",
        "What does PaliGemma 2's width of 2304 cost 4-bit vectors?",
        "If 2304 reads less than 0.85 of the bytes a second of both others, padding to 2560 pays.",
        4,
        small.width_2304,
    ),
    Part(
        "vectors",
        "Is Gemma 2's attention of a step faster as vectors?",
        "Vectors are the default. If they take more than 1.03 of the time of rows, VECTORS in pg_mlx/ops/attention.py "
        "should be 0 on this chip.",
        10,
        small.vectors,
    ),
    Part(
        "own_kernels_gemma",
        "Are our own kernels right and faster, in PaliGemma 1?",
        "If a ratio is below 0.97 and the error is within its bound, set PG_MLX_KERNELS to that option.",
        36,
        partial(steps.own_kernels, family="gemma"),
    ),
    Part(
        "in_place",
        "Are keys and values written in place, and when should a step begin?",
        "If the usual order holds one layer's keys and values more or above, they are copied: send this report. "
        "If another order takes less than 0.97 of the time, the engine should use that order on this chip.",
        24,
        steps.in_place,
    ),
    Part(
        "guided",
        "What do constrained answers gain from passes that begin early?",
        "It is always on. A ratio above 1 for early passes, or tokens that are not equal, is a fault: send this "
        "report.",
        20,
        requests.guided,
    ),
    Part(
        "forced_attention",
        "Is attention over a whole prefix faster or slower as one kernel?",
        "Below 0.97, pg_mlx should force one kernel on this chip.",
        4,
        small.one_kernel,
    ),
    Part(
        "own_kernels_gemma2",
        "Are our own kernels right and faster, in PaliGemma 2?",
        "If a ratio is below 0.97 and the error is within its bound, set PG_MLX_KERNELS to that option.",
        60,
        partial(steps.own_kernels, family="gemma2"),
    ),
    Part(
        "unequal_rows",
        "What do unequally long rows cost?",
        "Above 1.1, a server should answer prompts of equal length together. A first step far longer than the "
        "later ones is the compilation that `warm_up` is for.",
        14,
        steps.unequal_rows,
    ),
    Part(
        "python",
        "Is Python's share of a step hidden?",
        "If building takes more than half of a step, the GPU waits for Python, and compiling parts of a layer pays.",
        12,
        steps.python_share,
    ),
    Part(
        "stages",
        "How long does each stage of an answer take?",
        "These times go into docs/performance.md.",
        40,
        checks.stages,
    ),
    Part(
        "second_request",
        "Is the second request faster if MLX keeps its freed buffers?",
        "Below 0.97, the engine should not empty MLX's cache after a prefix (mx.clear_cache in "
        "pg_mlx/generation/engine.py), where memory allows.",
        36,
        requests.second_request,
    ),
    Part(
        "command_buffers",
        "What do command buffers of other sizes bring, and what do they cost?",
        "A ratio below 0.97 is no advice by itself: set the variables only if the peak of a prefix may grow by "
        "that much. Larger buffers are likelier to be ended by macOS, and programs that begin steps early copy "
        "keys and values.",
        90,
        buffers.command_buffers,
    ),
)
"""Whatever is open about Macs, in docs and code."""
