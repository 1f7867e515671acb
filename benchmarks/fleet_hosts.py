"""Two hosts on one Linux machine: do the lines of docs/batch.md for ssh and for Ray run as they are written?

    sudo python -m benchmarks.fleet_hosts          (needs root, iproute2 and OpenSSH's server; says so without them)

The hosts are those of `parallel_hosts`. They share /Volumes/lab, in which a list of scenes stands, and the bundled demo
in place of a 3B. Each has its own ~/.ray and /tmp/ray. The lines for Ray run where Ray is installed. Before
the second host joins as the page has it, it tries without the token and with another one.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.fleet_jobs import ROOT, expected_of, make_scenes, verdict
from benchmarks.parallel_hosts import DEMO, PATHS, Hosts, sh, wait

LAB = "/Volumes/lab"
REFUSED_S = 60
"""How long an attempt may take that should be refused."""
SHOWN = 8
"""Lines of output, from the end; those of tracebacks are left out."""
SETUP = f"""
mount -t tmpfs none /Volumes
mkdir {LAB}
mount --bind {{folder}}/lab {LAB}
mkdir -p /root/.ray /tmp/ray
mount -t tmpfs none /root/.ray
mount -t tmpfs none /tmp/ray
echo "127.0.0.1 localhost $(hostname)" >> /etc/hosts   # asking for names takes long where nobody answers
mount --bind /dev/null /etc/resolv.conf
ip route add default dev $(ls /sys/class/net | grep pg)   # Ray takes the address of the route to the Internet
"""
WHERE = ("every Mac", "the first", "the others", "any of them")
"""The comments above the lines for Ray."""
IN_TERMINAL = "export PATH=/opt/pg/bin:$PATH OMP_NUM_THREADS=1\n"
"""What a person's shell has beyond the documented lines: the environment of pg_mlx."""


def blocks(word: str) -> list[str]:
    """The page's indented blocks of code with a word in them."""
    page = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")
    found = re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found if word in block]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("ssh", "ray"), help="default: both")
    parser.add_argument("--count", type=int, default=1040, help="pictures (default: 1040, which make two shards)")
    args = parser.parse_args()
    lacking = [name for name in ("ip", "nsenter", "sshd", "ssh-keygen") if shutil.which(name, path=PATHS) is None]
    if os.geteuid() or lacking:
        print(f"skipped: needs root, and {', '.join(lacking) or 'nothing else'}")
        return
    ours = not Path("/Volumes").exists()
    sh("mkdir -p /Volumes")  # only a place to mount at; both hosts have their own there
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            expected = prepare(folder / "lab", args.count)
            with Hosts(folder, SETUP.format(folder=folder)) as hosts:
                if args.only != "ray":
                    by_ssh(hosts, folder / "lab", expected)
                if args.only != "ssh":
                    on_ray(hosts, folder / "lab", expected)
    finally:
        if ours:
            Path("/Volumes").rmdir()


def prepare(lab: Path, count: int) -> list[dict[str, Any]]:
    """The shared folder, and the right answers as the hosts name the pictures."""
    lab.mkdir()
    scenes = make_scenes(lab / "photos", count)
    (lab / "list.txt").write_text("".join(f"photos/{path.name}\n" for path in sorted(scenes.iterdir())))
    shutil.copytree(DEMO, lab / "pg2-4bit")
    return [{**answer, "image": answer["image"].replace(str(lab), LAB)} for answer in expected_of(scenes)]


def by_ssh(hosts: Hosts, lab: Path, expected: list[dict[str, Any]]) -> None:
    (block,) = blocks("ssh $host")
    loop, done, rest = block.partition("done\n")
    say(hosts, loop + done)
    status, merge = rest.splitlines()
    began = time.monotonic()
    wait(lambda: say(hosts, status, quiet=True) == 0, 240)
    print(f"(after {time.monotonic() - began:.1f} s)")
    say(hosts, status)
    say(hosts, merge)
    for part in (1, 2):
        log = Path(f"/tmp/batch-{part}.log")
        print(f"{log.name}: {log.read_text().strip().splitlines()[-1]}")
        log.unlink()
    print(f"{len((lab / 'captions.jsonl').read_text().splitlines())} lines; {verdict(lab / 'captions', expected)}")
    shutil.rmtree(lab / "captions")


def on_ray(hosts: Hosts, lab: Path, expected: list[dict[str, Any]]) -> None:
    if not (Path(sys.prefix) / "bin" / "ray").exists():
        print("Ray is not installed here, so its lines were not run")
        return
    (block,) = blocks("ray start --head")
    steps = dict(re.findall(rf"^# on ({'|'.join(WHERE)}).*\n((?:(?!#).*\n)+)", block, re.MULTILINE))
    every = steps["every Mac"]
    say(hosts, every + steps["the first"])
    join, command = steps["the others"], steps["any of them"].replace("auto", "mini1.local:6379")
    for what, change in (
        ("no token", "mv ~/.ray/auth_token ~/.ray/kept"),
        ("another token", "printf %064d 7 > ~/.ray/auth_token"),
    ):
        print(f"- {what}, a node and the command:")
        say(hosts, change, "mini2", quiet=True)
        say(hosts, every + join, "mini2", seconds=REFUSED_S)
        say(hosts, every + command, "mini2", seconds=REFUSED_S)
    print("- no token, and the variable is not set:")
    say(hosts, "rm ~/.ray/auth_token", "mini2", quiet=True)
    say(hosts, join, "mini2", seconds=REFUSED_S)
    say(hosts, command, "mini2", seconds=REFUSED_S)
    print("- with the token:")
    say(hosts, "mv ~/.ray/kept ~/.ray/auth_token", "mini2", quiet=True)
    say(hosts, every + join, "mini2")
    say(hosts, every + steps["any of them"])
    print(verdict(lab / "captions", expected))


def say(hosts: Hosts, lines: str, name: str = "mini1", quiet: bool = False, seconds: int = 240) -> int:
    """Run lines on a host, and print what they print. Returns the exit code; 124 if they were stopped after so many
    seconds."""
    process = hosts.start(f"timeout {seconds} bash -c {shlex.quote(IN_TERMINAL + lines)}", name)
    out, error = process.communicate()
    if not quiet:
        printed = [line for line in (out + error).splitlines() if line.strip() and not line.startswith("  ")]
        stopped = f" (stopped after {seconds} s)" if process.returncode == 124 else ""
        print(f"{name}$ {lines.rstrip()}", *printed[-SHOWN:], sep="\n    ")
        print(f"    -> exit code {process.returncode}{stopped}", flush=True)
    return process.returncode


if __name__ == "__main__":
    main()
