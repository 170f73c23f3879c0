"""Hosts for tests: Linux namespaces on a network of their own, each like a machine with sshd.

A host has a network, processes, a name, ``/tmp``, ``/run``, ``/dev/shm``, accounts and a home of its own; all
other files are this machine's. Its first process holds all of it: when that dies, as it does with the
process that made the host, nothing is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NETWORK = "10.77.0"
_PROGRAMS = ("ip", "mount", "nsenter", "rsync", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare")
_SPACES = ("--net", "--uts", "--ipc", "--mount", "--pid", "--mount-proc")
_UNSHARE = ("unshare", *_SPACES, "--fork", "--kill-child")
_READY_S = 120
_FIRST = """
set -e
for file in passwd hosts nsswitch.conf; do
    mount --bind "$FILES/$file" "/etc/$file"
done
mount --bind /tmp /mnt
mount -t tmpfs tmpfs /tmp
for path in "$@"; do
    mkdir -p "/tmp/$path"
    mount --rbind "/mnt/$path" "/tmp/$path"
done
umount -l /mnt
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
hostname "$NAME"
ip link set lo up
echo ready
$SERVICE &
wait
"""
"""The first process of a host: paths below ``/tmp`` that it keeps are its arguments. A shell, as it waits for
whatever processes become its children."""


def missing() -> str | None:
    """What this machine lacks for hosts, in words."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root"
    if not (Path(sys.prefix) / "bin" / "activate").exists():
        return "needs to be run from a virtual environment"
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian's iproute2, openssh-server, rsync and util-linux)"
    if subprocess.run([*_UNSHARE, "true"], capture_output=True).returncode:
        return "needs namespaces, which this machine does not grant"
    return None


@dataclass(frozen=True)
class Host:
    """A running host."""

    name: str
    address: str
    home: Path
    first: int
    """This machine's number of its first process."""

    def command(self, command: Sequence[str], folder: Path | None = None, **variables: str) -> list[str]:
        """What runs a command on the host, as its user with the virtual environment of this process."""
        path = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"HOME": str(self.home), "PATH": path, "LANG": "C.UTF-8", **variables}
        inside = ["env", "-i", "-C", str(folder or self.home), *(f"{k}={v}" for k, v in environment.items())]
        return ["nsenter", "--all", f"--target={self.first}", "--", *inside, *command]

    def processes(self) -> list[str]:
        """Command lines of what runs there, without its first process, sshd and zombies."""
        own = os.readlink(f"/proc/{self.first}/ns/pid")
        lines = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                inside = os.readlink(entry / "ns" / "pid") == own and int(entry.name) != self.first
                line = (entry / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:  # it has ended
                continue
            if inside and line and not line.startswith("sshd: "):
                lines.append(line)
        return lines

    def cut_power(self) -> None:
        """Takes the host off the network and kills everything on it, so that nobody hears it go."""
        link = ["nsenter", "--net", f"--target={self.first}", "--", "ip", "link", "set", "eth0", "down"]
        subprocess.run(link, check=True)
        os.kill(self.first, signal.SIGKILL)


@contextmanager
def network(folder: Path, names: Sequence[str]) -> Iterator[list[Host]]:
    """Starts hosts that reach one another and nothing else.

    Args:
        folder: for their homes and settings; all of them see it under the same path.
        names: of the hosts; all but the first, which connects them, serve SSH to the key ``folder/key``.
    """
    addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=1)}
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    needed = (folder, ROOT, Path(sys.prefix), Path(sys.base_prefix))
    kept = [path for path in needed if path.is_relative_to("/tmp")]
    with ExitStack() as stack:
        hosts: list[Host] = []
        for name, address in addresses.items():
            files = folder / name
            files.mkdir()
            _write_settings(files, addresses, key)
            sshd = f"{shutil.which('sshd')} -D -e -f {files}/sshd_config"
            variables = {"FILES": str(files), "NAME": name, "SERVICE": sshd if hosts else "sleep infinity"}
            first = stack.enter_context(_first_process(files, variables, kept))
            hosts.append(Host(name, address, files / "home", first))
            _connect(hosts[-1], hosts[0])
        yield hosts


def _write_settings(files: Path, addresses: Mapping[str, str], key: Path) -> None:
    """A home that accepts the key, and what of ``/etc`` is the host's own."""
    home = files / "home"
    shutil.copytree("/etc/skel", home)
    (home / ".ssh").mkdir(mode=0o700)
    shutil.copy(key.with_suffix(".pub"), home / ".ssh" / "authorized_keys")
    accounts = Path("/etc/passwd").read_text().splitlines()
    root = f"root:x:0:0:root:{home}:/bin/bash"  # ssh takes the home from here, whatever HOME is
    others = [line for line in accounts if not line.startswith("root:")]
    (files / "passwd").write_text("\n".join([root, *others, ""]))
    lines = [f"{address} {name}" for name, address in addresses.items()]
    (files / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    (files / "nsswitch.conf").write_text("passwd: files\nshadow: files\ngroup: files\nhosts: files\n")
    (files / "sshd_config").write_text(
        f"HostKey {key}\nAuthorizedKeysFile .ssh/authorized_keys\nStrictModes no\nUseDNS no\nPidFile none\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )


@contextmanager
def _first_process(files: Path, variables: Mapping[str, str], kept: Sequence[Path]) -> Iterator[int]:
    """Starts a host and ends all that runs on it; gives the number of its first process."""
    paths = [str(path.relative_to("/tmp")) for path in kept]
    command = ["setpriv", "--pdeathsig", "KILL", *_UNSHARE, "bash", "-c", _FIRST, "bash", *paths]
    with (files / "log").open("w") as log:
        outer = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **variables}, start_new_session=True
        )
    try:
        end = time.monotonic() + _READY_S
        while "ready" not in (files / "log").read_text():
            if outer.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"a host did not start: {(files / 'log').read_text()}")
            time.sleep(0.05)
        yield int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
    finally:
        outer.kill()  # which kills the first process, and the kernel all others
        outer.wait()


def _connect(host: Host, hub: Host) -> None:
    """Plugs a host into the bridge of the hub, which is made with it."""

    def ip(on: Host, *arguments: str) -> None:
        at = ["nsenter", "--net", f"--target={on.first}", "--"]
        subprocess.run([*at, "ip", *arguments], check=True)

    if host is hub:
        ip(host, "link", "add", "eth0", "type", "bridge")
    else:
        ends = ["eth0", "type", "veth", "peer", "name", host.name, "netns", str(hub.first)]
        ip(host, "link", "add", *ends)
        ip(hub, "link", "set", host.name, "master", "eth0", "up")
    ip(host, "address", "add", f"{host.address}/24", "dev", "eth0")
    ip(host, "link", "set", "eth0", "up")
    ip(host, "route", "add", "default", "dev", "eth0")  # Ray finds its address by it
