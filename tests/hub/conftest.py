"""A Hub for the tests of this folder, and fresh Python processes that take it for the real one."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import huggingface_hub
import pytest
from packaging.version import Version

from .server import Hub

CLIENT_TRIES = 6 if Version(huggingface_hub.__version__) >= Version("1.21") else 1
"""How often the client sends what the server leaves without an answer, before it gives up. It repeats refusals in any version."""

HASTE = "import time; time.sleep = lambda seconds: None\n"


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()
    assert server.crashes == []


def run_python(
    code: str, env: Mapping[str, str], cwd: str | Path | None = None, hasty: bool = False, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """
    Run a snippet in a fresh interpreter.

    Args:
        code (`str`): May be indented.
        env (`Mapping[str, str]`): Of `Hub.environment`.
        cwd (`str` or `Path`, *optional*): Working folder.
        hasty (`bool`, *optional*, defaults to `False`): Do not wait between the tries of a client: 24 seconds until it
            gives up.
        timeout (`float`, *optional*, defaults to 120): In seconds; a hanging client is an error.

    Returns:
        `CompletedProcess`: `returncode`, and text in `stdout` and `stderr`.
    """
    command = [sys.executable, "-c", HASTE * hasty + dedent(code)]
    return subprocess.run(command, env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=timeout)
