"""Does mlx-vlm read what we convert, do we read what it converts, and are the logits the same? Prints the table of
docs/compatibility.md.

    python -m benchmarks.compatibility --peer-python PYTHON

PYTHON is an interpreter that has mlx-vlm and transformers (with torch). Both sides get the same pixels and ids, and
then the same picture and prompt. The checkpoints are random and small, but shaped like the published ones: a SigLIP
MLP that no group size divides, and for PaliGemma 2 a query width unlike the decoder's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pg_mlx.checkpoint.layouts import PATCH_KERNEL
from pg_mlx.checkpoint.load import load
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.conversion import convert
from pg_mlx.conversion.side_files import preprocessor_json, tokenizer_config_json
from pg_mlx.conversion.tokenizer_json import write_tokenizer_json
from pg_mlx.generation import generate
from pg_mlx.ops.device import mx
from tools import random_checkpoint

Json = dict[str, Any]

ROOT = Path(__file__).parent.parent
PROMPT, STEPS = "caption en", 12
IMAGE = ROOT / "tests" / "cat.jpg"
PIECES, ROWS = 1800, 1856  # of the small tokenizer, and of the embedding
FAMILIES = {
    # mlx-vlm takes Gemma 1's head_dim to be hidden_size / num_attention_heads, which is true of the published model.
    "PaliGemma 1": dict(model_type="gemma", hidden_size=512, intermediate_size=1024, num_hidden_layers=3,
                        num_attention_heads=4, num_key_value_heads=1, head_dim=128),
    "PaliGemma 2": dict(model_type="gemma2", hidden_size=256, intermediate_size=512, num_hidden_layers=4,
                        num_attention_heads=4, num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=24,
                        attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=4096),
}  # fmt: skip
OURS: dict[str, Json] = {
    "float32": dict(dtype="float32"),
    "bfloat16": dict(dtype="bfloat16"),
    "4 bits": dict(q_bits=4, dtype="float32"),
    "8 bits": dict(q_bits=8, dtype="float32"),
    "tiny": dict(q_recipe="tiny", dtype="float32"),
    "balanced": dict(q_recipe="balanced", dtype="float32"),
    "balanced, bfloat16": dict(q_recipe="balanced", dtype="bfloat16"),
    "quality": dict(q_recipe="quality", dtype="float32"),
    "mxfp4": dict(q_mode="mxfp4", dtype="float32"),
    "4 bits, eyes float": dict(q_bits=4, dtype="float32", q_overrides={"vision_tower.*": "float"}),
}
THEIRS: dict[str, Json] = {
    "float32": dict(dtype="float32"),
    "4 bits": dict(quantize=True, q_bits=4, dtype="float32"),
    "8 bits": dict(quantize=True, q_bits=8, dtype="float32"),
    "mixed_4_6": dict(quantize=True, quant_predicate="mixed_4_6", dtype="float32"),
    "mxfp4": dict(quantize=True, q_mode="mxfp4", q_bits=None, q_group_size=None, dtype="float32"),
}


@dataclass
class Row:
    """One folder read by a peer and by us: the largest difference of a logit, and the answers."""

    family: str
    written_by: str
    form: str
    read_by: str
    loads: bool = False
    error: str = ""
    same_input: bool = False
    difference: float = float("nan")
    difference_float32: float = float("nan")
    """With the peer's floats cast to float32 first."""
    their_tokens: list[int] = field(default_factory=list)
    our_tokens: list[int] = field(default_factory=list)

    def cells(self) -> list[str]:
        """The family's three columns of the table."""
        if self.error:
            return [f"fails: {self.error.splitlines()[0][:60]}", "", ""]
        if not self.our_tokens:
            return [f"{self.difference:.1e}", "", ""]
        return [f"{self.difference:.1e}", f"{self.difference_float32:.1e}", f"{self.agreed}/{len(self.our_tokens)}"]

    @property
    def agreed(self) -> int:
        """Greedy tokens up to the first different one."""
        pairs = zip(self.their_tokens, self.our_tokens, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.their_tokens), len(self.our_tokens)))


def hugging_face_folder(folder: Path, family: str, published: bool = False, **text: int) -> Path:
    """A random checkpoint as the hub has them: PyTorch's kernel, tokenizer files, a processor configuration.

    published: with PaliGemma 2's config.json as published, which has no hidden_size at the top. text: other dimensions
    of the decoder than those of FAMILIES.
    """
    raw = random_checkpoint.raw_config("tiny-56", vocab_size=ROWS)
    raw |= {"text_config": {**FAMILIES[family], "vocab_size": ROWS, **text}, "image_token_index": PIECES}
    raw |= {"hidden_size": raw["text_config"]["hidden_size"], "projection_dim": raw["text_config"]["hidden_size"]}
    random_checkpoint.write(folder, raw, None, random_checkpoint.SMALL_TOKENIZER)
    if published:
        del raw["hidden_size"]
    (folder / "config.json").write_text(json.dumps(raw))
    write_tokenizer_json(folder / "tokenizer.model", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config_json()))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_json(56, 16)))
    source = SafetensorsFolder(folder)
    tensors = {name: source.read(name).astype(mx.float32) for name in source.shapes}
    tensors[PATCH_KERNEL] = tensors[PATCH_KERNEL].transpose(0, 3, 1, 2)
    mx.eval(tensors)
    for path in folder.glob("model*"):
        path.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    return folder


def ask(python: str, folder: Path, jobs: list[Json]) -> list[Json]:
    """Run the jobs with the probe, in a process of the other interpreter. Raises RuntimeError if it dies."""
    request, answer = folder / "jobs.json", folder / "results.json"
    request.write_text(json.dumps(jobs))
    answer.unlink(missing_ok=True)
    probe = str(ROOT / "benchmarks" / "mlx_vlm_probe.py")
    done = subprocess.run([python, probe, str(request), str(answer)], capture_output=True, text=True, check=False)
    if not answer.is_file():
        raise RuntimeError(f"{python} {probe} failed:\n{done.stderr[-2000:]}")
    results: list[Json] = json.loads(answer.read_text())
    return results


def write_inputs(folder: Path, path: Path) -> None:
    """Pixels and ids as our processor makes them, in the shape that the peers take."""
    model, processor = load(folder, dtype="float32")
    ids = [PIECES] * model.config.vision.num_patches + processor.prompt_ids(PROMPT)
    pixels = mx.array(processor.pixels(IMAGE)).transpose(2, 0, 1)[None]
    arrays = {"input_ids": mx.array([ids], dtype=mx.int32), "pixel_values": mx.contiguous(pixels)}
    mx.save_safetensors(str(path), arrays)


def compare(row: Row, folder: Path, inputs: Path, output: Path, result: Json) -> Row:
    """Fill a row from what the peer reported and what we make of the same folder, in float32."""
    row.error = result.get("error", "")
    row.loads = not row.error
    if row.error:
        return row
    row.same_input = result["same_ids"] and result["pixel_difference"] < 1e-6
    model, processor = load(folder, dtype="float32")
    arrays = mx.load(str(inputs))
    assert isinstance(arrays, dict)
    pixels = arrays["pixel_values"].transpose(0, 2, 3, 1)
    images = model.config.vision.num_patches
    ours = model.logits(model.encode_image(pixels), arrays["input_ids"][:, images:])
    theirs = mx.load(str(output))
    assert isinstance(theirs, dict)

    def difference(name: str) -> float:
        return mx.abs(ours - theirs[name][:, images:]).max().item()  # type: ignore[return-value]

    row.difference = difference("logits")
    if "tokens" in result:
        answer = generate(model, processor, PROMPT, str(IMAGE), max_tokens=STEPS)
        row.their_tokens, row.our_tokens = result["tokens"], answer.token_ids
        row.difference_float32 = difference("wide")
    return row


def _paths(folder: Path, inputs: Path) -> Json:
    return dict(
        folder=str(folder), inputs=str(inputs), output=f"{folder}-logits.safetensors", prompt=PROMPT, image=str(IMAGE)
    )  # fmt: skip


def measure(python: str, folder: Path, ours: list[str], theirs: list[str], transformers: bool = True) -> Iterator[Row]:
    """Rows for the forms of OURS and THEIRS with these names, for both families."""
    for family in FAMILIES:
        place = folder / family.replace(" ", "-")
        place.mkdir()
        source = hugging_face_folder(place / "source", family)
        inputs = place / "inputs.safetensors"
        write_inputs(source, inputs)
        rows: list[tuple[Row, Path]] = []
        for form in ours:
            target = place / f"ours-{form}".replace(", ", "-").replace(" ", "-")
            convert(source, target, check=False, **OURS[form])
            rows.append((Row(family, "pg_mlx", form, "mlx-vlm"), target))
        conversions = []
        for form in theirs:
            target = place / f"theirs-{form}".replace(" ", "-")
            conversions.append(dict(do="mlx_vlm_convert", source=str(source), target=str(target), options=THEIRS[form]))
            rows.append((Row(family, "mlx-vlm", form, "mlx-vlm"), target))
        if theirs and family == "PaliGemma 2":
            published = hugging_face_folder(place / "published", family, published=True)
            rows.append((Row(family, "Hugging Face", "as published", "mlx-vlm"), published))
            fixed = place / "fixed"
            convert(published, fixed, check=False)
            rows.append((Row(family, "pg_mlx", "as published, converted", "mlx-vlm"), fixed))
        runs = [dict(do="mlx_vlm_run", steps=STEPS, **_paths(target, inputs)) for _, target in rows]
        results = ask(python, place, conversions + runs)[len(conversions) :]
        if transformers:
            more = [
                (Row(family, "Hugging Face", "float32", "transformers"), source),
                (Row(family, "pg_mlx", "float32", "transformers"), place / "ours-float32"),
                (Row(family, "transformers", "float32", "transformers"), place / "saved"),
            ]
            rows += more
            jobs: list[Json] = [dict(do="transformers_save", source=str(source), target=str(place / "saved"))]
            jobs += [dict(do="transformers_run", weights=True, **_paths(target, inputs)) for _, target in more]
            results += ask(python, place, jobs)[1:]
        for (row, target), result in zip(rows, results, strict=True):
            yield compare(row, target, inputs, Path(f"{target}-logits.safetensors"), result)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer-python", required=True, help="an interpreter with mlx-vlm, transformers and torch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = ask(args.peer_python, folder, [dict(do="versions")])[0]
        print(", ".join(f"{name} {number}" for name, number in found.items()), "\n")
        rows = list(measure(args.peer_python, folder, list(OURS), list(THEIRS)))
    print(table(rows))
    print("\nids and pixels equal in all rows:", "yes" if all(row.same_input for row in rows if row.loads) else "no")


def table(rows: list[Row]) -> str:
    """Markdown, a line for each form and three columns for each family."""
    by_form: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        by_form.setdefault((row.written_by, row.form, row.read_by), {})[row.family] = row
    heads = ["written by", "form", "read by"]
    for family in FAMILIES:
        heads += [f"{family}: logits differ by", "in float32", "tokens"]
    lines = [heads, ["---"] * 3 + ["--:"] * 3 * len(FAMILIES)]
    for names, found in by_form.items():
        cells = [found[family].cells() if family in found else [""] * 3 for family in FAMILIES]
        lines.append([*names, *(cell for three in cells for cell in three)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
