"""The clients: what they get is what is given alone, and a worker that is killed costs the requests in flight only."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.commands import ROOT
from helpers.service import MIXED, SCENE, WILD, alone

from pg_mlx.client import Answer, AsyncClient, Client, ServingError
from pg_mlx.generation import SamplingOptions
from pg_mlx.regions import rle

pytestmark = pytest.mark.ops("cpu", reason="the worker behind the client is tested in test_worker.py")

CAPTION = alone("caption en", (SCENE,), SamplingOptions()).text
LONG = dict(max_tokens=8000, temperature=WILD.temperature, seed=WILD.seed)
NODE = shutil.which("node")


def given(options: SamplingOptions) -> dict[str, object]:
    return vars(options)


def test_importing_the_client_imports_nothing_heavy():
    code = "import sys, pg_mlx.client; print([m for m in ('mlx', 'mlx.core', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_many_threads_ask_and_a_killed_worker_is_replaced():
    stages = []
    with Client(progress=lambda stage, done, of: stages.append(stage)) as client:

        def ask(number: int) -> None:
            prompt, images, options, logprobs = MIXED[number % len(MIXED)]
            sources = [image if number % 2 else image.read_bytes() for image in images]
            *events, answer = client.stream(prompt, sources, logprobs=logprobs, **given(options))
            expected = alone(prompt, images, options, logprobs)
            assert isinstance(answer, Answer) and answer.text == expected.text
            assert "".join(event for event in events if isinstance(event, str)) == expected.text
            assert answer.token_ids == expected.token_ids and answer.finish_reason == expected.finish_reason
            for found, region in zip(answer.regions, expected.regions, strict=True):
                assert (found["label"], tuple(found["box"])) == (region.label, region.box)
                if region.mask is not None:
                    assert (rle.decode(found["mask"]) == region.mask).all()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(len(MIXED))))
        assert list(dict.fromkeys(stages)) == ["fetch", "weights", "warm-up"]

        running = [client.stream("ocr", SCENE, **LONG) for _ in range(3)]
        assert all(isinstance(next(stream), str) for stream in running)
        killed = client.pid
        os.kill(killed, signal.SIGKILL)
        for stream in running:
            with pytest.raises(ServingError) as failed:
                list(stream)
            assert failed.value.code == "worker_died"
        assert client.generate("caption en", SCENE).text == CAPTION and client.pid != killed

        for arguments, code in [((b"no picture",), "bad_image"), (([],), "bad_request")]:
            with pytest.raises(ServingError) as failed:
                client.generate("ocr", *arguments)
            assert failed.value.code == code
        stream = client.stream("ocr", SCENE, **LONG)
        next(stream)
        stream.close()
        assert client.generate("caption en", SCENE).text == CAPTION
        assert client.stats()["failed"] == {"bad_image": 1, "cancelled": 1}
        last = client._worker
    assert last.process.returncode == 0


def test_a_worker_that_cannot_start_or_load_is_told():
    for client, code in [
        (Client(command=["/nothere/pg-mlx"]), "worker_died"),
        (Client(command=[sys.executable, "-c", "print('hello')"]), "worker_died"),
        (Client("/nothere/model"), "bad_model"),
    ]:
        with client, pytest.raises(ServingError) as failed:
            client.generate("ocr", SCENE)
        assert failed.value.code == code


def test_asyncio_asks_together_and_cancelling_a_task_cancels_its_request():
    async def run() -> None:
        async with AsyncClient() as client:
            texts = []
            async for event in client.stream("caption en", SCENE):
                texts.append(event)
            assert "".join(texts[:-1]) == texts[-1].text == CAPTION
            long = asyncio.create_task(client.generate("ocr", SCENE, **LONG))
            answers = await asyncio.gather(*(client.generate("caption en", SCENE) for _ in range(3)))
            assert [answer.text for answer in answers] == [CAPTION] * 3
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            await client.generate("caption en", SCENE)
            assert (await client.stats())["failed"] == {"cancelled": 1}

    asyncio.run(run())


@pytest.mark.skipif(NODE is None, reason="there is no node")
def test_the_node_example_answers_and_tells_failures():
    def node(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PG_MLX_WORKER": f"{sys.executable} -m pg_mlx worker"}
        script = str(ROOT / "examples" / "client.mjs")
        return subprocess.run(
            [NODE, script, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120
        )

    expected = alone("detect red circle", (SCENE,), SamplingOptions())
    done = node(str(SCENE), "detect red circle")
    box = " ".join(str(int(edge + 0.5)) for edge in expected.regions[0].box)
    assert done.returncode == 0 and done.stdout == f"{expected.text}\nred circle {box}\n", done.stderr
    failed = node(str(SCENE), "ocr", "/nothere/model")
    assert failed.returncode == 1 and failed.stderr.startswith("bad_model: ") and failed.stdout == ""


@pytest.mark.skipif(NODE is None, reason="there is no node")
def test_the_node_client_survives_its_worker():
    program = f"""
    import {{ Client }} from "./examples/client.mjs";
    const client = new Client({{ command: [{sys.executable!r}, "-m", "pg_mlx", "worker"] }});
    const codes = [];
    try {{
      for await (const message of client.stream("ocr", {str(SCENE)!r}, {{ max_tokens: 8000, temperature: 9, seed: 1 }}))
        process.kill(await client.pid, "SIGKILL");
    }} catch (error) {{ codes.push(error.code); }}
    for await (const message of client.stream("ocr", {str(SCENE)!r}, {{ max_tokens: 8000, temperature: 9, seed: 1 }}))
      break;
    codes.push((await client.generate("caption en", {str(SCENE)!r})).text);
    await client.close();
    console.log(codes.join("|"));
    """
    command = [NODE, "--input-type=module", "-e", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.stdout == f"worker_died|{CAPTION}\n", done.stderr
