#!/usr/bin/env python3
"""The emulated board: an arm64 Debian under qemu-user, reached over real SSH, with the simulator's live tree as its /sys.

    board.py build              the root file system, once (`make board`); a later call finds it and does nothing
    board.py run [--fresh]      runs it until stdin closes or Ctrl-C; prints "ready" once SSH answers
    board.py exec -- COMMAND    as root inside the running board
    board.py jtop               the real service of jetson-stats inside the running board
    board.py check              can it run here? exit 0 yes, 3 no (the reason is printed)

Needs root (chroot, mounts), Debian or Ubuntu, and the packages qemu-user-static, debootstrap and openssh-client, which `build`
installs where they are missing. Everything it makes lies in one directory (--dir, .board beside the checkout's Makefile): the
pristine root is never written to, a run works on an overlay of it.

The board's processes live in mount and pid namespaces of their own: however it ends, the kernel ends every process in there and
takes every mount back. Its network is this machine's, and its SSH listens on the loopback address only, with a host key and a
user key made for it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUITE = "bookworm"
PACKAGES = ("openssh-server", "python3", "python3-venv")
PYTHON = "3.11"  #: what the suite ships; wheels are chosen for it
#: What JetPack's system Python has on a real board, as wheels for aarch64 in the system's dist-packages.
SYSTEM_WHEELS = ("numpy<2.3", "onnxruntime>=1.23,<2")
#: jtop and what it imports; pure Python, built here from their sources. Its service is started by whoever wants it (JTOP_SERVICE).
JTOP_WHEELS = ("jetson-stats>=7.2,<8", "distro", "smbus2", "nvidia-ml-py")
WHEEL_PLATFORMS = ("manylinux_2_17_aarch64", "manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
HOST_PACKAGES = {"debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static", "ssh": "openssh-client"}
#: The real service of jetson-stats, reading the simulated board's files: run it on the board as root, with JTOP_TESTING=True.
JTOP_SERVICE = "import time; from jtop.service import JtopServer; JtopServer(force=True).start(); time.sleep(1e9)"
USER = "jetson"
BOARD = "orin-nano"
READY_SECONDS = 120
CANNOT = 3

BINFMT = Path("/proc/sys/fs/binfmt_misc")
#: An ELF header of a 64-bit little-endian program or library for aarch64; F opens the interpreter now, so chroots need no copy.
BINFMT_RULE = (
    r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{interpreter}:F"
)

SSHD_CONFIG = """\
ListenAddress 127.0.0.1
HostKey /etc/ssh/board_host_key
AllowUsers {user}
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes yes
PrintMotd no
UseDNS no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""

SSH_CONFIG = """\
Host board
  HostName 127.0.0.1
  Port {port}
  User {user}
  HostKeyAlias emulated-board
  IdentityFile "{directory}/keys/user"
  IdentitiesOnly yes
  UserKnownHostsFile "{directory}/keys/known_hosts"
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


class Cannot(Exception):
    """This machine cannot run the board; the message says why and what would help."""


def main() -> int:
    """Parses the command line and runs one command."""
    parser = argparse.ArgumentParser(prog="board.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path(__file__).resolve().parents[2] / ".board", help="where it lives")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build the root file system")
    commands.add_parser("check", help="say whether the board can run here")
    commands.add_parser("jtop", help="the service of jetson-stats on the running board, until it is ended")
    run = commands.add_parser("run", help="run the board until stdin closes")
    run.add_argument("--fresh", action="store_true", help="forget what earlier runs changed on the board")
    run.add_argument("--simulate", default=BOARD, help="which board the sensors are of")
    inside = commands.add_parser("exec", help="a command as root inside the running board")
    inside.add_argument("words", nargs=argparse.REMAINDER)
    for hidden in ("_build", "_run"):  # what `build` and `run` start inside the namespaces
        commands.add_parser(hidden).add_argument("words", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    directory: Path = options.dir.resolve()
    try:
        if options.command == "check":
            check(directory)
        elif options.command == "build":
            build(directory)
        elif options.command == "jtop":
            return execute(directory, ["env", "JTOP_TESTING=True", "python3", "-c", JTOP_SERVICE])
        elif options.command == "_build":
            build_inside(directory)
        elif options.command == "run":
            run_board(directory, options.fresh, options.simulate)
        elif options.command == "_run":
            return run_inside(directory, *options.words)
        else:
            return execute(directory, options.words[1:] if options.words[:1] == ["--"] else options.words)
    except Cannot as reason:
        print(f"the emulated board cannot run here: {reason}", file=sys.stderr)
        return CANNOT
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd[:6]))} ... failed ({error.returncode})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


# --- can it run here?


def require() -> None:
    """Raises `Cannot` unless this machine can chroot into an aarch64 root, without changing anything.

    Raises:
        Cannot: with the reason.
    """
    if sys.platform != "linux":
        raise Cannot("it needs Linux")
    if os.geteuid() != 0:
        raise Cannot("it needs root (chroot, mounts, namespaces)")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        raise Cannot("this root may not make namespaces (inside a container without CAP_SYS_ADMIN?)")
    file_systems = Path("/proc/filesystems").read_text().split()
    for needed in ("overlay", *(() if native() else ("binfmt_misc",))):
        if needed not in file_systems and subprocess.run(["modprobe", needed], capture_output=True, check=False).returncode:
            raise Cannot(f"the kernel has no {needed}")


def native() -> bool:
    """Whether this machine is itself aarch64 and needs no emulator."""
    return platform.machine() == "aarch64"


def check(directory: Path) -> None:
    """Raises `Cannot` unless the board is built and can run."""
    require()
    if read_stamp(directory) != recipe():
        raise Cannot("it is not built. Run: make board")


def install_missing() -> None:
    """Installs the host's packages that are missing, where there is apt."""
    missing = [package for program, package in HOST_PACKAGES.items() if not shutil.which(program)]
    if native():
        missing = [package for package in missing if package != "qemu-user-static"]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Cannot(f"these packages are missing: {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]):
        done = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
    if done.returncode:
        raise Cannot(f"apt-get could not install {' '.join(missing)}: {done.stderr.strip().splitlines()[-1:]}")


# --- building


def recipe() -> str:
    """Changes when the root must be rebuilt."""
    parts = [SUITE, *PACKAGES, PYTHON, *SYSTEM_WHEELS, *JTOP_WHEELS, *WHEEL_PLATFORMS, USER, SSHD_CONFIG]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_stamp(directory: Path) -> str | None:
    """The recipe that the built root was made by."""
    with suppress(OSError, ValueError):
        return str(json.loads((directory / "built.json").read_text())["recipe"])
    return None


def build(directory: Path) -> None:
    """Builds the root file system unless it is there already. Interrupting is safe."""
    require()
    install_missing()
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)  # sshd's user must be able to walk into the root
    with locked(directory / "build.lock"):
        if read_stamp(directory) == recipe():
            say(f"the board is built: {directory}")
            return
        begin = time.monotonic()
        make_keys(directory)
        download_wheels(directory)
        namespaced(directory, "_build")
        seconds = round(time.monotonic() - begin)
        (directory / "built.json").write_text(json.dumps({"recipe": recipe(), "seconds": seconds}) + "\n")
        say(f"built in {seconds} s: {directory}")


def build_inside(directory: Path) -> None:
    """The part of building that mounts and emulates; runs in namespaces of its own."""
    enable_emulation()
    root = directory / "root"
    shutil.rmtree(root, ignore_errors=True)
    for left in ("upper", "work"):
        shutil.rmtree(directory / left, ignore_errors=True)
    debs = directory / "debs"
    debs.mkdir(exist_ok=True)
    say("unpacking Debian for arm64 (first stage)")
    log = directory / "debootstrap.log"
    with log.open("wb") as stream:
        first = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", f"--cache-dir={debs}"]
        subprocess.run([*first, f"--include={','.join(PACKAGES)}", SUITE, root], stdout=stream, stderr=stream, check=True)
        dpkg = root / "etc/dpkg/dpkg.cfg.d"
        dpkg.mkdir(parents=True, exist_ok=True)
        (dpkg / "board").write_text("force-unsafe-io\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n")
        say("configuring it under emulation (second stage; two to five minutes)")
        subprocess.run(["chroot", root, "/debootstrap/debootstrap", "--second-stage"], stdout=stream, stderr=stream, check=True)
    furnish(directory, root)


def furnish(directory: Path, root: Path) -> None:
    """Makes a plain Debian root into a board: what JetPack's Python has, a user with a key, sshd."""
    say("adding what JetPack's Python has")
    target = root / f"usr/local/lib/python{PYTHON}/dist-packages"
    wheels = map(str, (directory / "wheels").glob("*.whl"))
    pip("install", "--no-deps", "--no-compile", "--no-index", "--target", str(target), *foreign(), *wheels)
    compile_wheels(root, target)
    account = ["/usr/sbin/useradd", "--create-home", "--password", "*", "--groups", "jtop", "--shell", "/bin/bash", USER]
    for command in (["/usr/sbin/groupadd", "jtop"], account):
        subprocess.run(["chroot", root, *command], check=True)
    (root / "etc/hostname").write_text("emulated-board\n")
    (root / "etc/ssh/sshd_config").write_text(SSHD_CONFIG.format(user=USER))
    shutil.copy(directory / "keys/host", root / "etc/ssh/board_host_key")
    ssh = root / f"home/{USER}/.ssh"
    ssh.mkdir(mode=0o700)
    shutil.copy(directory / "keys/user.pub", ssh / "authorized_keys")
    subprocess.run(["chroot", root, "/bin/chown", "-R", f"{USER}:{USER}", f"/home/{USER}"], check=True)


def compile_wheels(root: Path, target: Path) -> None:
    """Bytecode of the system's wheels: by this Python where it makes the same, emulated where not (a minute)."""
    if platform.python_version().startswith(f"{PYTHON}."):
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-s", root, "-p", "/", target], check=False)
    else:
        inside = Path("/") / target.relative_to(root)
        subprocess.run(["chroot", root, "/usr/bin/python3", "-m", "compileall", "-q", inside], check=False)


def make_keys(directory: Path) -> None:
    """A host key and a user key, made again with the root."""
    keys = directory / "keys"
    shutil.rmtree(keys, ignore_errors=True)
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"emulated-{name}", "-f", keys / name], check=True)
    kind, key, *_ = (keys / "host.pub").read_text().split()
    (keys / "known_hosts").write_text(f"emulated-board {kind} {key}\n")


def download_wheels(directory: Path) -> None:
    """The system's wheels for aarch64, with this machine's pip."""
    say("downloading wheels for aarch64")
    wheels = directory / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    pip("download", "--no-deps", "--dest", str(wheels), *foreign(), *SYSTEM_WHEELS)
    pip("wheel", "--no-deps", "--wheel-dir", str(wheels), *JTOP_WHEELS)


def foreign() -> list[str]:
    """pip's options for wheels of the board instead of this machine."""
    platforms = [word for name in WHEEL_PLATFORMS for word in ("--platform", name)]
    return [*platforms, "--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:"]


def pip(command: str, *words: str) -> None:
    """This Python's pip."""
    complete = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(complete, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()


# --- running


def run_board(directory: Path, fresh: bool, simulate: str) -> None:
    """Becomes the process that holds the board; returns only where it cannot start."""
    check(directory)
    holder = os.open(directory / "run.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Cannot(f"it runs already (process {(directory / 'run.pid').read_text().strip()})") from None
    os.set_inheritable(holder, True)  # held until the last process of the board is gone
    if fresh:
        for left in ("upper", "work", "board"):
            shutil.rmtree(directory / left, ignore_errors=True)
    (directory / "run.pid").write_text(f"{os.getpid()}\n")
    os.execvp("unshare", namespace_command(directory, "_run", simulate))


def run_inside(directory: Path, simulate: str) -> int:
    """Process 1 of the board's namespace: mounts, sensors, sshd; ends when stdin closes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    enable_emulation()
    merged = directory / "merged"
    for name in ("upper", "work", "merged"):
        (directory / name).mkdir(exist_ok=True)
    layers = f"lowerdir={directory / 'root'},upperdir={directory / 'upper'},workdir={directory / 'work'}"
    mount("-t", "overlay", "overlay", "-o", layers, merged)
    mount("-t", "proc", "proc", merged / "proc")
    mount("--rbind", "/dev", merged / "dev")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", merged / "run")
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", merged / "tmp")
    (merged / "run/sshd").mkdir()
    (merged / "etc/hosts").write_text("127.0.0.1 localhost emulated-board\n")
    subprocess.run(["hostname", "emulated-board"], check=True)
    attach_sensors(directory / "board", merged, simulate)
    for _ in range(5):
        port = free_port()
        sshd = subprocess.Popen(["chroot", merged, "/usr/sbin/sshd", "-D", "-e", "-p", str(port)], stdin=subprocess.DEVNULL)
        if answers(port, sshd):
            break
    else:
        print("sshd does not start on the board", file=sys.stderr)
        return 1
    config = directory / "ssh_config"
    config.write_text(SSH_CONFIG.format(port=port, user=USER, directory=directory))
    print("ready", flush=True)
    while os.read(0, 4096):
        pass
    return 0


def attach_sensors(tree: Path, merged: Path, simulate: str) -> None:
    """Starts the simulator and puts its live tree where a board has its /sys; its power follows this machine's real load."""
    source = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "edge_tprune.simulator", simulate, str(tree)]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    simulator = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=tree.parent, env=environment)
    assert simulator.stdout is not None
    if not simulator.stdout.readline():  # its first line comes when the tree is complete
        raise Cannot(f"the simulator of {simulate} ended with {simulator.wait()}")
    # /proc is the kernel's own here: what a board's has more is where the kernel of a board really keeps it.
    shutil.copytree(tree / "proc/device-tree", tree / "sys/firmware/devicetree/base", dirs_exist_ok=True)
    for name in ("possible", "present"):
        shutil.copy(tree / "sys/devices/system/cpu/online", tree / "sys/devices/system/cpu" / name)
    shutil.copy(tree / "proc/stat", tree / "sys/stat")  # where jtop looks for it while it is tested
    for place in (merged / "sys", merged / "fake_sys"):
        place.mkdir(exist_ok=True)
        mount("--bind", tree / "sys", place)
    for name in ("nv_tegra_release", "nvpmodel.conf"):
        if (tree / "etc" / name).exists():
            shutil.copy(tree / "etc" / name, merged / "etc" / name)
    shutil.copytree(tree / "var", merged / "var", dirs_exist_ok=True)


def answers(port: int, sshd: subprocess.Popen[bytes]) -> bool:
    """Waits until the board's sshd greets; False where it ended instead."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and sshd.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=READY_SECONDS) as connection:
            if connection.recv(4) == b"SSH-":
                return True
        time.sleep(0.1)
    return False


def free_port() -> int:
    """A TCP port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def execute(directory: Path, words: list[str]) -> int:
    """Runs `words` as root inside the running board."""
    try:
        holder = (directory / "run.pid").read_text().strip()
    except OSError:
        raise Cannot(f"no board runs in {directory}. Run: {sys.argv[0]} run") from None
    spaces = [f"--mount=/proc/{holder}/ns/mnt", f"--uts=/proc/{holder}/ns/uts", f"--pid=/proc/{holder}/ns/pid_for_children"]
    return subprocess.run(["nsenter", *spaces, "chroot", directory / "merged", *words], check=False).returncode


# --- namespaces and emulation


def namespace_command(directory: Path, command: str, *words: str) -> list[str]:
    """The command line that runs `board.py command` as process 1 of new namespaces, which die with it."""
    spaces = ["unshare", "--mount", "--pid", "--uts", "--mount-proc", "--kill-child", "--propagation", "private"]
    return [*spaces, sys.executable, str(Path(__file__).resolve()), "--dir", str(directory), command, *words]


def namespaced(directory: Path, command: str) -> None:
    """Runs `board.py command` in namespaces of its own and waits for it."""
    subprocess.run(namespace_command(directory, command), stdin=subprocess.DEVNULL, check=True)


def enable_emulation() -> None:
    """Registers qemu for aarch64 programs, for as long as these namespaces hold the mount."""
    if native():
        return
    if not (BINFMT / "register").exists():
        mount("-t", "binfmt_misc", "binfmt_misc", BINFMT)
    entry = BINFMT / "qemu-aarch64"
    if entry.exists():
        if "F" in next(line for line in entry.read_text().splitlines() if line.startswith("flags:")):
            return
        raise Cannot("binfmt_misc has qemu-aarch64 without the flag F. Run: apt-get install --reinstall qemu-user-static")
    (BINFMT / "register").write_text(BINFMT_RULE.format(interpreter=shutil.which("qemu-aarch64-static")))


def mount(*words: str | Path) -> None:
    """mount(8)."""
    subprocess.run(["mount", *words], check=True)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds an exclusive lock, waiting for whoever has it."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """One line of progress."""
    print(f"board: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
