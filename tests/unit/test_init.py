# SPDX-License-Identifier: Apache-2.0
"""init.sh decides rightly which Python and whose torch; it says so and installs nothing here."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
COPIED = ("init.sh", "pyproject.toml", "requirements", "scripts", "backends")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What init.sh reads, without any .venv."""
    target = tmp_path / "checkout"
    target.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target / name)  # type: ignore[operator]
    return target


def fake_python(folder: Path, torch: str | None, extra: str = "") -> Path:
    """This Python with ``torch`` as the text of its torch package, or with none."""
    packages = folder / "packages"
    packages.mkdir(parents=True)
    if torch is not None:
        (packages / "torch").mkdir()
        (packages / "torch" / "__init__.py").write_text(torch)
    if extra:
        (packages / extra).mkdir()
    python = folder / "python3.11"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec "{BASE}" "$@"\n')
    python.chmod(0o755)
    return python


def torch_text(version: str, **built: str) -> str:
    names = "; ".join(f"version.{k} = {v!r}" for k, v in built.items()) or "pass"
    return (
        f"import types\n__version__ = {version!r}\n"
        f"version = types.SimpleNamespace(cuda=None, hip=None)\n{names}\n"
    )


def init(checkout: Path, python: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(checkout / "init.sh"), "--dry-run", *flags],
        env={**os.environ, "PYTHON": str(python)}, cwd="/", capture_output=True, text=True,
    )  # fmt: skip


def test_without_torch_the_lock_is_installed(checkout: Path, tmp_path: Path) -> None:
    done = init(checkout, fake_python(tmp_path / "p", None))
    assert done.returncode == 0, done.stderr
    assert "requirements/core.lock" in done.stdout
    assert "torch==2.13.0" in done.stdout
    assert "--system-site-packages" not in done.stdout
    assert not (checkout / ".venv").exists(), "a dry run made something"


def test_plain_torch_outside_is_left_outside(checkout: Path, tmp_path: Path) -> None:
    done = init(checkout, fake_python(tmp_path / "p", torch_text("2.13.0+cpu")), "--dev")
    assert "requirements/dev.lock" in done.stdout
    assert "requirements/triton.lock" in done.stdout  # a CPU build of torch has no Triton
    assert "--system-site-packages" not in done.stdout


@pytest.mark.parametrize(
    ("torch", "plugin", "shown"),
    [
        (torch_text("2.10.0+corex.4.4.0", cuda="10.2"), "", "CUDA 10.2"),
        (torch_text("2.10.0a0+b4e4ee8.nv25.12", cuda="13.0"), "", "CUDA 13.0"),
        (torch_text("2.11.0+das.opt1.dtk", hip="6.3"), "", "HIP 6.3"),
        (torch_text("2.10.0+cpu"), "torch_gcu", "torch_gcu"),
    ],
)
def test_a_vendors_torch_is_used_and_never_replaced(
    checkout: Path, tmp_path: Path, torch: str, plugin: str, shown: str
) -> None:
    python = fake_python(tmp_path / "p", torch, plugin)
    done = init(checkout, python)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert "--system-site-packages" in done.stdout
    assert "torch==" not in done.stdout
    assert "core.lock" not in done.stdout
    forced = init(checkout, python, "--backend", "cpu_ref")
    assert init(checkout, python, "--backend", "cpu").stdout == forced.stdout
    assert "torch==2.13.0" in forced.stdout
    assert "--system-site-packages" not in forced.stdout


@pytest.mark.parametrize(
    ("torch", "flags", "message"),
    [
        (torch_text("2.4.1+cu121", cuda="12.1"), (), "needs torch 2.10 to 2.15"),
        ("raise ImportError('libcuda.so.1 is missing')", (), "libcuda.so.1 is missing"),
        (None, ("--backend", "abacus"), "no backend 'abacus' here; there are: "),
        (None, ("--bckend", "cpu_ref"), "unknown option --bckend"),
    ],
)
def test_errors_name_the_fix(
    checkout: Path, tmp_path: Path, torch: str | None, flags: tuple[str, ...], message: str
) -> None:
    done = init(checkout, fake_python(tmp_path / "p", torch), *flags)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_plugin_that_nobody_knows_is_seen_by_its_entry_point(
    checkout: Path, tmp_path: Path
) -> None:
    python = fake_python(tmp_path / "p", torch_text("2.10.0+cpu"), "acme-1.0.dist-info")
    info = tmp_path / "p" / "packages" / "acme-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nacme = acme_torch:_autoload\n")
    done = init(checkout, python)
    assert done.returncode == 0, done.stderr
    assert "found torch 2.10.0+cpu (acme_torch): used unchanged" in done.stdout


def test_a_broken_plugin_is_not_a_broken_torch(checkout: Path, tmp_path: Path) -> None:
    """torch imports plugins by itself; init.sh leaves what is wrong with them to the doctor."""
    text = torch_text("2.10.0+cpu") + (
        "import os\nif os.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD') != '0':\n"
        "    raise RuntimeError('Failed to load the backend extension: torch_gcu')\n"
    )
    done = init(checkout, fake_python(tmp_path / "p", text, "torch_gcu"))
    assert done.returncode == 0, done.stderr
    assert "torch_gcu" in done.stdout


def test_a_python_that_does_not_fit_is_refused(checkout: Path) -> None:
    done = init(checkout, Path("/bin/false"))
    assert done.returncode == 1
    assert "is not a working Python 3.10 to 3.13" in done.stderr


def made(checkout: Path, backend: str = "auto", torch: str = "") -> Path:
    """Make what ``init.sh`` would: .venv with this checkout's bertbench; return the Python behind.

    ``torch`` is the text of a torch package that it installed.
    """
    venv = checkout / ".venv"
    subprocess.run([BASE, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "bertbench.pth").write_text(f"{checkout}\n")
    (checkout / "bertbench").mkdir(exist_ok=True)
    (checkout / "bertbench" / "__init__.py").touch()
    if torch:
        (site / "torch").mkdir()
        (site / "torch" / "__init__.py").write_text(torch)
    (site / "pip").mkdir()
    (site / "pip" / "__init__.py").touch()
    inputs = "init.sh pyproject.toml requirements/*.lock requirements/torch.txt"
    key = subprocess.run(
        ["bash", "-c", f"cat {inputs} scripts/outer_torch.py | cksum"],
        cwd=checkout, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    layout = f"locked {sys.version_info[:2]} {sys.base_prefix}"
    (venv / ".bertbench").write_text(f"{key}\nno\n{layout}\n{backend}\n")
    return BASE


def test_second_call_finds_nothing_to_do(checkout: Path) -> None:
    """The stamp is about init.sh's inputs, --dev and --backend."""
    python = made(checkout, backend="cpu_ref")
    stamp = checkout / ".venv" / ".bertbench"
    assert "up to date" in init(checkout, python).stdout
    assert "keeping --backend cpu_ref" in init(checkout, python).stdout
    assert "up to date" not in init(checkout, python, "--dev").stdout
    assert "up to date" not in init(checkout, python, "--backend", "auto").stdout
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert "up to date" not in init(checkout, python).stdout
    assert stamp.exists(), "a dry run took the stamp away"


@pytest.mark.parametrize(("flags", "lock"), [((), "core"), (("--dev",), "dev")])
def test_without_an_index_one_line_names_files_command_and_place(
    checkout: Path, flags: tuple[str, ...], lock: str
) -> None:
    python = made(checkout)
    pip = next((checkout / ".venv").glob("lib/python*/site-packages/pip"))
    (pip / "__main__.py").write_text(
        "raise SystemExit('ERROR: No matching distribution found for anyio==4.16.0 (from x)')\n"
    )
    (checkout / "pyproject.toml").write_text("# changed\n")
    done = subprocess.run(
        ["bash", str(checkout / "init.sh"), *flags],
        env={"PATH": os.environ["PATH"], "PYTHON": str(python)}, cwd="/",  # no other pip
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    version = ".".join(map(str, sys.version_info[:2]))
    assert last.startswith(
        "init: error: pip could not install anyio==4.16.0, which it did not find"
    )
    more = f" {' '.join(flags)}".rstrip()
    assert f"run 'bash init.sh --download wheels{more}' with Python {version}, copy" in last
    assert last.endswith(f"{checkout}/wheels, and run here: bash init.sh --wheelhouse wheels{more}")


def test_a_folder_of_wheels_is_fetched_and_is_all_that_is_asked(
    checkout: Path, tmp_path: Path
) -> None:
    """``--download`` fetches what ``--wheelhouse`` then asks for, and no index."""
    index, wheels = tmp_path / "index", tmp_path / "wheels"
    index.mkdir()
    with zipfile.ZipFile(index / "tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr(
            "tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n"
        )
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    digest = hashlib.sha256((index / "tiny-1-py3-none-any.whl").read_bytes()).hexdigest()
    for name in ("core.lock", "torch.txt"):
        text = f"tiny==1 --hash=sha256:{digest}\n" if name == "core.lock" else "tiny==1\n"
        (checkout / "requirements" / name).write_text(text)
    python = made(checkout)
    shutil.rmtree(next((checkout / ".venv").glob("lib/python*/site-packages/pip")))
    subprocess.run(
        [checkout / ".venv/bin/python", "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL
    )
    stamp = (checkout / ".venv" / ".bertbench").read_text()
    offline = {"PATH": os.environ["PATH"], "PYTHON": str(python)}

    def call(*flags: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(checkout / "init.sh"), *flags], env=offline | more, cwd=tmp_path,
            capture_output=True, text=True,
        )  # fmt: skip

    done = call("--download", "wheels", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index))
    assert done.returncode == 0, done.stderr
    assert (
        f"done. Copy {wheels}" in done.stdout and "fetching requirements/core.lock" in done.stdout
    )
    assert [p.name for p in wheels.iterdir()] == ["tiny-1-py3-none-any.whl"]
    assert (checkout / ".venv" / ".bertbench").read_text() == stamp  # nothing was installed

    (checkout / "pyproject.toml").write_text("# changed\n")  # so that there is something to do
    done = call("--wheelhouse", "wheels")
    tiny = next((checkout / ".venv").glob("lib/python*/site-packages"), tmp_path) / "tiny.py"
    assert tiny.exists(), done.stderr  # bertbench itself is not in this checkout
    (wheels / "tiny-1-py3-none-any.whl").rename(wheels / "other-1-py3-none-any.whl")
    tiny.unlink()
    shutil.rmtree(tiny.with_name("tiny-1.dist-info"))
    done = call("--wheelhouse", "wheels")
    assert done.returncode == 1
    assert "has not all files; pip could not install tiny" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--download",), "--download needs a folder"),
        (("--wheelhouse", ""), "--wheelhouse needs a folder"),
        (("--wheelhouse", "/nowhere"), "/nowhere has no wheels"),
        (("--wheelhouse", "/a", "--download", "/b"), "give one of them"),
    ],
)
def test_wrong_folders_of_wheels(checkout: Path, flags: tuple[str, ...], message: str) -> None:
    done = init(checkout, BASE, *flags)
    assert done.returncode == 1 and message in done.stderr


def activated(checkout: Path, venv: Path, *flags: str) -> str:
    """Return what init.sh says where ``venv`` is activated, and PATH has no vendor's torch."""
    plain = checkout.parent / "plain"
    if not plain.exists():
        fake = fake_python(plain, None)
        for name in ("python3.10", "python3.12", "python3.13", "python3", "python"):
            (plain / name).symlink_to(fake)
    path = f"{venv / 'bin'}:{plain}:/usr/bin:/bin"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON"}
    done = subprocess.run(
        ["bash", "init.sh", "--dry-run", *flags],
        env=environment | {"PATH": path, "VIRTUAL_ENV": str(venv)},
        cwd=checkout, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


OURS = torch_text("2.11.0+cu128", cuda="12.8")
"""What pip installs on a machine with a GPU; in another place it would be a vendor's."""


def test_its_own_environment_is_no_vendors_where_it_is_activated(checkout: Path) -> None:
    made(checkout, torch=OURS)
    venv = checkout / ".venv"
    assert "up to date" in activated(checkout, venv)
    said = activated(checkout, venv, "--dev")
    assert f"Python is {checkout.parent / 'plain'}/" in said
    assert "removing" not in said and "used unchanged" not in said
    done = init(checkout, venv / "bin" / "python", "--dev")
    assert f"Python is {BASE.parent}/" in done.stdout and "removing" not in done.stdout


def test_nor_is_that_of_another_checkout(checkout: Path, tmp_path: Path) -> None:
    made(checkout, torch=OURS)
    other = tmp_path / "other"
    shutil.copytree(checkout, other, ignore=shutil.ignore_patterns(".venv"))
    said = activated(other, checkout / ".venv")
    assert "used unchanged" not in said and "core.lock" in said


def test_a_vendors_environment_behind_ours_is_found(checkout: Path, tmp_path: Path) -> None:
    """A container may have its torch in an environment, which ours shadows in PATH."""
    made(checkout, torch=OURS)
    vendor = fake_python(tmp_path / "vendor", torch_text("2.10.0+corex", cuda="10.2"))
    venv = checkout / ".venv"
    done = subprocess.run(
        ["bash", "init.sh", "--dry-run", "--dev"], cwd=checkout, capture_output=True, text=True,
        env={"PATH": f"{venv / 'bin'}:{vendor.parent}:{BASE.parent}:/usr/bin:/bin"},
    )  # fmt: skip
    assert "found torch 2.10.0+corex (CUDA 10.2): used unchanged" in done.stdout, done.stderr


@pytest.mark.parametrize("moves", [True, False])
def test_a_checkout_that_was_moved_or_copied_is_made_again(
    checkout: Path, tmp_path: Path, moves: bool
) -> None:
    """The scripts of .venv begin with its path, and bertbench is installed by its path."""
    python = made(checkout)
    assert "up to date" in init(checkout, python).stdout
    there = tmp_path / "there"
    shutil.copytree(checkout, there, symlinks=True)
    if moves:
        shutil.rmtree(checkout)
    said = init(there, python).stdout
    assert "removing .venv: it is broken, was moved," in said and "making .venv" in said


def test_two_at_once_wait_for_each_other(checkout: Path) -> None:
    """The second finds that the first has done the work."""
    if shutil.which("flock") is None:
        pytest.skip("no flock here")
    python = made(checkout)
    stamp = checkout / ".venv" / ".bertbench"
    text = stamp.read_text()
    stamp.unlink()
    first = subprocess.Popen(
        ["flock", str(checkout / ".venv.lock"), "sh", "-c", "echo locked; read line"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None and first.stdout.readline() == "locked\n"
    second = subprocess.Popen(
        ["bash", "init.sh"], env=os.environ | {"PYTHON": str(python)}, cwd=checkout,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert second.stdout is not None
    assert "waiting for another init.sh" in second.stdout.readline()
    stamp.write_text(text)
    first.communicate("\n")
    assert "up to date" in second.communicate(timeout=60)[0]
    assert second.returncode == 0


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_it_is_found_however_it_is_called(checkout: Path, tmp_path: Path, shell: str) -> None:
    """By a link, by sh, with CDPATH, and as the copy that sbatch runs."""
    python = made(checkout)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "checkout").mkdir(parents=True)
    (elsewhere / "link.sh").symlink_to(checkout / "init.sh")
    shutil.copy(checkout / "init.sh", elsewhere / "slurm_script")
    environment = os.environ | {"PYTHON": str(python), "CDPATH": str(elsewhere)}
    for script, folder, extra in (
        (elsewhere / "link.sh", "/", {}),
        (Path("checkout/init.sh"), checkout.parent, {}),
        (elsewhere / "slurm_script", "/", {"SLURM_SUBMIT_DIR": str(checkout)}),
    ):
        done = subprocess.run(
            [shell, str(script)], cwd=folder, env=environment | extra, capture_output=True,
            text=True,
        )  # fmt: skip
        assert "up to date" in done.stdout, (script, done.stderr)
    lost = subprocess.run(
        [shell, str(elsewhere / "slurm_script")], env=environment, capture_output=True, text=True
    )
    assert lost.returncode == 1 and "sbatch it from that folder" in lost.stderr
