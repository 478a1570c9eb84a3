"""Build hooks: what is compiled when the wheel is built, so that a router needs no compiler.

setup.cfg describes the project; it can't run clang, which compiles the kernel's parts (meter and inlet), nor protoc,
which turns .proto files into Python. Objects are made for both byte orders because the wheel is pure Python otherwise
and may be installed on either; the loader picks the one of its machine. A wheel gets what is made in its build folder
and an editable install gets it beside the source, so a build never leaves stale objects behind.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build import build
from setuptools.errors import ExecError, SetupError

ROOT = Path(__file__).resolve().parent
SOURCES = (Path("modules/network/meter.bpf.c"), Path("modules/link/inlet.bpf.c"))
PROTOS = {
    Path("modules/payment/lnd.proto"): Path("ngp/modules/payment"),
    Path("ngp/calls/landlord.proto"): Path("ngp/calls"),
}
"""Descriptions of messages, with the folders of a wheel that get their stubs."""
TARGETS = ("bpfel", "bpfeb")  # clang's names of the byte orders
CLANG = os.environ.get("CLANG", "clang")
HEADERS = {"bpf/bpf_helpers.h": "libbpf-dev", "linux/bpf.h": "linux-libc-dev"}


def include_flags() -> list[str]:
    """Name the folder of the C library's <asm/...> headers, which `-target bpf*` doesn't search by itself."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folder = Path("/usr/include") / multiarch
    return ["-idirafter", str(folder)] if multiarch and folder.is_dir() else []


def check_compiler() -> None:
    """Refuse to build, naming the package to install, when clang or a header that they need is missing."""
    for header, package in HEADERS.items():
        probe = [CLANG, "-target", "bpfel", *include_flags(), "-fsyntax-only", "-x", "c", "-"]
        source = f"#include <linux/types.h>\n#include <{header}>\n"
        try:
            done = subprocess.run(probe, input=source, text=True, capture_output=True, check=False)
        except FileNotFoundError:
            raise ExecError(
                f"{CLANG}: not found; the kernel's part is compiled with it: apt install clang "
                "(or set CLANG to its name, for example CLANG=clang-14)"
            ) from None
        if "unknown target" in done.stderr or "unable to create target" in done.stderr:
            raise ExecError(f"{CLANG} can't compile for BPF; install one with that target: apt install clang")
        if done.returncode:
            raise ExecError(f"<{header}> not found or unusable: apt install {package}\n{done.stderr.strip()}")


def object_of(source: Path, target: str) -> Path:
    """Name the object of a source as the loader looks for it."""
    return source.with_name(source.name.replace(".bpf.c", f".{target}.o"))


def compile_object(source: Path, target: str, output: Path) -> None:
    """Compile a source for one byte order; paths are kept out of the object so that builds are equal anywhere."""
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(CLANG, "-O2", "-g", "-Wall", "-target", target, "-mcpu=v3", "-fdebug-compilation-dir=."),
        *(*include_flags(), "-c", str(source), "-o", str(output)),
    ]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        raise ExecError(f"{source} doesn't compile ({' '.join(command)}):\n{done.stderr.strip()}")


class BuildMeter(Command):
    """`python setup.py build_meter --inplace`, and a step of every build (setuptools' SubCommand protocol)."""

    description = "compile the kernel's parts for both byte orders"
    user_options: ClassVar[list[tuple[str, str, str]]] = [
        ("build-lib=", "b", "folder that becomes the wheel"),
        ("inplace", "i", "put the objects beside their source"),
    ]
    boolean_options: ClassVar[list[str]] = ["inplace"]

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.inplace = False
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        for source in SOURCES:
            if not (ROOT / source).is_file():
                raise SetupError(f"{source} is missing from {ROOT}: take a complete checkout or source distribution")
        check_compiler()
        folder = ROOT if self.inplace or self.editable_mode else self._library().absolute()
        for source in SOURCES:
            for target in TARGETS:
                place = object_of(source, target)
                compile_object(source, target, folder / (place if folder == ROOT else "ngp" / place))

    def _library(self) -> Path:
        return Path(self.build_lib or "build/lib")

    def get_source_files(self) -> list[str]:
        return [str(source) for source in SOURCES]

    def get_outputs(self) -> list[str]:
        return [
            str(self._library() / "ngp" / object_of(source, target)) for source in SOURCES for target in TARGETS
        ]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def compile_stubs(proto: Path, folder: Path) -> None:
    """Compile messages, and their type stubs."""
    from grpc_tools import protoc  # of the build's own environment (pyproject.toml)

    folder.mkdir(parents=True, exist_ok=True)
    words = ["protoc", f"-I{proto.parent}", f"--python_out={folder}", f"--pyi_out={folder}", proto.name]
    if protoc.main(words):
        raise ExecError(f"{proto} doesn't compile ({' '.join(words)})")


def stubs_of(proto: Path) -> tuple[str, str]:
    """Name the files that are compiled from a description."""
    return f"{proto.stem}_pb2.py", f"{proto.stem}_pb2.pyi"


class BuildStubs(BuildMeter):
    """`python setup.py build_stubs --inplace`, and a step of every build."""

    description = "compile the messages that are exchanged with LND, and with landlords"

    def run(self) -> None:
        os.chdir(ROOT)
        for proto, folder in PROTOS.items():
            compile_stubs(proto, proto.parent if self.inplace or self.editable_mode else self._library() / folder)

    def get_source_files(self) -> list[str]:
        return [str(proto) for proto in PROTOS]

    def get_outputs(self) -> list[str]:
        return [str(self._library() / folder / name) for proto, folder in PROTOS.items() for name in stubs_of(proto)]


class Build(build):
    """setuptools' build, with the kernel's parts and the messages compiled as well."""

    sub_commands: ClassVar[list[tuple[str, None]]] = [
        *build.sub_commands, ("build_meter", None), ("build_stubs", None),
    ]  # fmt: skip


setup(cmdclass={"build": Build, "build_meter": BuildMeter, "build_stubs": BuildStubs})
