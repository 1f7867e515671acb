"""Two hosts on one Linux machine: do the lines of docs/parallel.md run as they are written, and how do failures end?

    sudo python -m benchmarks.parallel_hosts       (needs root, iproute2 and OpenSSH's server; says so without them)

Each host is a network namespace with an sshd, its own /opt and its own names: mini1.local and mini2.local, joined by a
virtual cable. In /opt/models stands the bundled demo in place of a 28B.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.parallel_ranks import ROOT, leading

PAGE = ROOT / "docs" / "parallel.md"
DEMO = ROOT / "pg_mlx" / "demo" / "checkpoint"
HOSTS = {"mini1": "10.0.0.1", "mini2": "10.0.0.2"}
SILENCE = 6.0
MODEL = "pg2-28b-448-8bit"

SETUP = """
set -e
ip link set lo up
mount -t tmpfs none /opt
mkdir /opt/models /opt/ssh
ln -s {environment} /opt/pg
cp -r {demo} /opt/models/{model}
cp {folder}/key {folder}/key.pub {folder}/host_key /opt/ssh
chmod 600 /opt/ssh/key /opt/ssh/host_key
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
mkdir -p /run/sshd
{more}
exec /usr/sbin/sshd -D -e -f {folder}/sshd_config
"""

SSHD = """
HostKey /opt/ssh/host_key
AuthorizedKeysFile /opt/ssh/key.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""

SSH = """
Host *
  IdentityFile /opt/ssh/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def space(name: str) -> str:
    """The network namespace of a host. It is this process's own: a second run at the same time has others."""
    return f"{name}-{os.getpid()}"


class Hosts:
    """The two hosts. They vanish at the end of the block."""

    def __init__(self, folder: Path, more: str = ""):
        """folder: what the hosts share; lines start there. more: commands that each host runs first."""
        self._folder, self._more = folder, more
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Hosts:
        folder, python = self._folder, Path(sys.prefix)
        for name in ("key", "host_key"):
            sh(f"ssh-keygen -q -t ed25519 -N '' -f {folder / name}")
        (folder / "hosts").write_text("".join(f"{ip} {name}.local\n" for name, ip in HOSTS.items()))
        (folder / "ssh_config").write_text(SSH)
        (folder / "sshd_config").write_text(SSHD)
        for name in HOSTS:
            sh(f"ip netns add {space(name)}")
        sh(f"ip link add pg1 netns {space('mini1')} type veth peer name pg2 netns {space('mini2')}")
        for number, (name, ip) in enumerate(HOSTS.items(), 1):
            sh(f"ip -n {space(name)} addr add {ip}/24 dev pg{number} && ip -n {space(name)} link set pg{number} up")
            setup = SETUP.format(environment=python, demo=DEMO, model=MODEL, folder=folder, more=self._more)
            log = (folder / f"{name}.log").open("wb")
            self._servers[name] = subprocess.Popen(
                ["ip", "netns", "exec", space(name), "bash", "-c", setup], stdout=log, stderr=log
            )
        for name in HOSTS:
            wait(lambda name=name: self.start(f"ssh {name}.local true").wait() == 0, 20)
        return self

    def __exit__(self, *_: object) -> None:
        for name in HOSTS:
            for pid in self.pids(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space(name)], check=False)

    def start(self, line: str, name: str = "mini1") -> subprocess.Popen[str]:
        """A line of a shell on a host, in the folder that the hosts share."""
        server = self._servers[name].pid
        shell = ["nsenter", "-t", str(server), "-m", "-n", "bash", "-c", f"cd {self._folder} && {line}"]
        return subprocess.Popen(
            shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def pids(self, name: str) -> list[int]:
        """All processes of a host."""
        listed = subprocess.run(["ip", "netns", "pids", space(name)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in listed.stdout.split()]

    def at_work(self, name: str) -> list[int]:
        """A host's processes of pg_mlx."""
        return [pid for pid in self.pids(name) if b"pg_mlx" in command_line(pid) and b"launch" not in command_line(pid)]


def command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/cmdline").read_bytes()
        return found if found.startswith((b"/opt/pg/bin/python", b"python")) else b""
    return b""


def sh(line: str) -> None:
    subprocess.run(line, shell=True, check=True)


def wait(condition: object, seconds: float) -> float:
    """Until a condition holds; the seconds that this took. Ends the program if it takes too long."""
    assert callable(condition)
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise SystemExit(f"not after {seconds:g} s")
        time.sleep(0.05)
    return time.monotonic() - start


def documented() -> Iterator[str]:
    """The page's lines for two hosts, word for word."""
    for block in re.findall(r"```console\n(.+?)\n```", PAGE.read_text(encoding="utf-8")):
        if "--hostfile lan.json" in block:
            yield block


def hostfile() -> str:
    found = re.search(r"```json\n(\[.+?\])\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def run_documented(hosts: Hosts) -> None:
    for line in documented():
        if " serve " in line:
            serve(hosts, line)
            continue
        start = time.monotonic()
        out, error = hosts.start(line).communicate(timeout=120)
        print(f"{line}\n  -> {out.strip()[:160]}   ({time.monotonic() - start:.1f} s)", flush=True)
        assert out.strip() and "error" not in error, error


def serve(hosts: Hosts, line: str) -> None:
    process = hosts.start(line)
    ask = "/opt/pg/bin/python -c " + shlex.quote(
        "import httpx\n"
        "files = {'image': open('cat.jpg', 'rb')}\n"
        "print(httpx.post('http://127.0.0.1:8080/v1/regions', data={'prompt': 'detect red circle'}, files=files,"
        " timeout=60).text)"
    )
    answer = ""

    def answered() -> bool:
        nonlocal answer
        answer = hosts.start(ask).communicate()[0]
        return '"regions"' in answer

    wait(answered, 60)
    for pid in hosts.at_work("mini1"):
        os.kill(pid, signal.SIGTERM)
    process.communicate(timeout=60)
    print(f"{line}\n  -> {answer.strip()[:160]}", flush=True)
    wait(lambda: not hosts.at_work("mini1") + hosts.at_work("mini2"), 10)


def failures(hosts: Hosts) -> None:
    """Two ranks at work; what is done to them, how long it takes until none is left, and what is said."""
    program = shlex.join(leading("benchmarks.parallel_cases", "endless", "pipeline", silence=SILENCE))
    program = program.replace(sys.executable, "/opt/pg/bin/python", 1)
    line = f"/opt/pg/bin/mlx.launch --hostfile lan.json --env PYTHONPATH={ROOT} --env OMP_NUM_THREADS=1 -- {program}"
    for what, host, harm in (
        ("kill -9 of rank 1", "mini2", signal.SIGKILL),
        ("kill -9 of rank 0", "mini1", signal.SIGKILL),
        ("SIGSTOP of rank 1", "mini2", signal.SIGSTOP),
        ("SIGSTOP of rank 0", "mini1", signal.SIGSTOP),
        ("the cable is pulled", "", None),
    ):
        process = hosts.start(line)
        wait_for_answers(process)
        time.sleep(0.3)
        if harm is None:
            sh(f"ip -n {space('mini1')} link set pg1 down")
        else:
            for pid in hosts.at_work(host):
                os.kill(pid, harm)
        seconds = wait(lambda: not hosts.at_work("mini1") + hosts.at_work("mini2"), SILENCE + 20)
        if harm is None:
            sh(f"ip -n {space('mini1')} link set pg1 up")
        try:
            out, error = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
        lines = [line for line in (out + error).splitlines() if "pg_mlx: rank" in line]
        print(
            f"{what}: none left after {seconds:.1f} s; launcher's exit code {process.returncode}; {lines}", flush=True
        )


def wait_for_answers(process: subprocess.Popen[str]) -> None:
    """Until the ranks answer. Ends the program with all that they have said if they end instead. (The launcher's ssh
    has a terminal, so stdout brings the ranks' stderr, too.)"""
    said = []
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line.strip() == "answering":
            return
        said.append(line)
    raise SystemExit(f"the ranks did not start; exit code {process.wait()}\n{''.join(said)}{process.stderr.read()}")


def main() -> None:
    lacking = [name for name in ("ip", "nsenter", "sshd", "ssh-keygen") if shutil.which(name, path=PATHS) is None]
    if os.geteuid() or lacking:
        print(f"skipped: needs root, and {', '.join(lacking) or 'nothing else'}")
        return
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(ROOT / "tests" / "cat.jpg", Path(folder) / "cat.jpg")
        (Path(folder) / "lan.json").write_text(hostfile())
        assert [host["ips"] for host in json.loads(hostfile())] == [[ip] for ip in HOSTS.values()]
        with Hosts(Path(folder)) as hosts:
            run_documented(hosts)
            failures(hosts)


PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


if __name__ == "__main__":
    main()
