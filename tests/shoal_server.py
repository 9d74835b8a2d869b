"""The real program as a child process: started, waited for, ended. Loopback only, and every wait
has an end: seconds are multiplied by $SHOAL_TIMEOUT_SCALE (default 1; sanitizers need 10)."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time

import httpx

TIMEOUT_SCALE = float(os.environ.get("SHOAL_TIMEOUT_SCALE", "1"))
CRASH = re.compile(r"Sanitizer|runtime error:|broken invariant|terminate called")


def seconds(duration):
    return duration * TIMEOUT_SCALE


def wait_until(condition, timeout, what):
    """The first true value of condition(), asked every few milliseconds for `timeout` seconds."""
    deadline = time.monotonic() + seconds(timeout)
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"no {what} within {seconds(timeout):g} s")


def is_sanitized(binary):
    data = pathlib.Path(binary).read_bytes()
    return b"__asan_init" in data or b"__tsan_init" in data


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(changes=None):
    """The parent's environment without the program's own variables, and with `changes`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    return inherited | (changes or {})


def run_shoal(binary, *arguments, timeout=60, env=None, stdin=None):
    """Runs the program to its end."""
    return subprocess.run(
        [str(binary), *map(str, arguments)], env=environment(env), input=stdin, text=True,
        capture_output=True, timeout=seconds(timeout), check=False)


class ShoalServer:
    """`shoal serve` on a free port of the loopback interface."""

    model = "test-model"  # the name it serves

    def __init__(self, binary, directory, *flags, env=None, wait=True):
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [str(binary), "serve", "--model", str(directory), "--port", str(self.port),
             "--served-model-name", self.model,
             *map(str, flags)],
            env=environment(env), stdin=subprocess.DEVNULL, stdout=self._log,
            stderr=subprocess.STDOUT)
        self.http = httpx.Client(base_url=self.base_url, timeout=seconds(30), trust_env=False)
        if wait:
            self.wait_until_ready()

    @property
    def log(self):
        """Everything it has written so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    def probe(self, path):
        """Status of a GET, or None while nothing listens."""
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return None

    def wait_until_ready(self):
        def ready():
            assert self.process.poll() is None, f"the server ended while starting:\n{self.log}"
            return self.probe("/readyz") == 200
        wait_until(ready, 60, "ready server")

    def wait_for_exit(self, timeout=20):
        return self.process.wait(seconds(timeout))

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def rss_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024

    def stop(self):
        """Ends it in good order; it must not have crashed."""
        self.http.close()
        if self.process.poll() is None:
            self.signal()
            try:
                self.wait_for_exit()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"SIGTERM did not end the server:\n{self.log}") from None
        log = self.log
        self._log.close()
        ended_well = self.process.returncode in (0, 1, -signal.SIGTERM)
        assert ended_well, f"exit {self.process.returncode}:\n{log}"
        assert not CRASH.search(log), log
