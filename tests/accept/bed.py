"""Shared by the Python scripts of tests/accept: options, running the program, one line for every check (see checks.sh,
which is the same for those in bash), servers and loop devices that go when the script does."""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parent.parent
COMPARE = TESTS / "fidelity" / "compare.py"
TORTURE = TESTS / "fidelity" / "torture.py"
BLOCKS = TESTS / "accept" / "blocks.py"


class Run:
    """What one run of the program wrote and how it ended."""

    def __init__(self, command, code, out, err):
        self.command, self.code, self.err = command, code, err
        self.lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        self.summary = self.lines[-1] if self.lines else {}

    def of_type(self, kind):
        return [line for line in self.lines if line["message_type"] == kind]

    def said(self):
        return " / ".join(self.err.strip().splitlines()[-2:])

    def panicked(self):
        return "panicked" in self.err or self.code < 0 or self.code == 101


class Bed:
    def __init__(self, about):
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--quick", action="store_true")
        parser.add_argument("--binary", required=True, type=os.path.realpath)
        parser.add_argument("--tools", type=os.path.realpath)
        self.options = parser.parse_args()
        self.quick, self.binary = self.options.quick, self.options.binary
        self.good = self.bad = self.skipped = 0
        self.name = pathlib.Path(sys.argv[0]).stem
        self.stack = contextlib.ExitStack()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(143))
        base = os.environ.get("TMPDIR", "/var/tmp")
        self.work = pathlib.Path(tempfile.mkdtemp(prefix=f"tradewind-accept-{self.name}.", dir=base))
        self.stack.callback(self.remove, self.work)
        # Seconds that a run of the program may take: one that hangs is a failure.
        self.limit = 120 if self.quick else 1800
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRADEWIND_", "AWS_", "S3_"))}
        self.environment["TRADEWIND_CACHE_DIR"] = str(self.work / "cache")
        self.store = []

    # --- results

    def _line(self, word, what, figures):
        print(f"{word} {what}: {figures}", flush=True)

    def check(self, good, what, figures):
        self.good, self.bad = self.good + bool(good), self.bad + (not good)
        self._line("ok" if good else "FAIL", what, figures)
        return bool(good)

    def skip(self, what, why):
        self.skipped += 1
        self._line("SKIP", what, why)

    def finish(self):
        print(f"# {self.name}: {self.good} ok, {self.bad} FAIL, {self.skipped} SKIP", flush=True)
        return 0 if self.good and not self.bad else 1

    def main(self, body):
        with self.stack:
            body(self)
            return self.finish()

    # --- the program

    def command(self, *arguments):
        return [self.binary, "--json", "--quiet", *self.store, *map(str, arguments)]

    def tw(self, *arguments, cache=None, **changed):
        """Runs the program to its end; `changed` replaces environment variables, None removes one."""
        environment = {**self.environment, **({"TRADEWIND_CACHE_DIR": str(cache)} if cache else {}), **changed}
        environment = {k: str(v) for k, v in environment.items() if v is not None}
        command = self.command(*arguments)
        code, out, err = self.ended(command, environment)
        text = (part.decode("utf-8", "replace") for part in (out, err))
        return Run(list(map(str, arguments)), code, *text)

    def ended(self, command, environment, stdout=subprocess.PIPE):
        """(exit code, standard output, standard error); 124 when it did not end in time."""
        try:
            done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout,
                                  stderr=subprocess.PIPE, timeout=self.limit, check=False)  # fmt: skip
        except subprocess.TimeoutExpired as late:
            return 124, late.stdout or b"", (late.stderr or b"") + b"did not end within %d s" % self.limit
        return done.returncode, done.stdout, done.stderr

    def must(self, *arguments, **more):
        run = self.tw(*arguments, **more)
        if run.code:
            raise SystemExit(f"{self.name}: error: '{' '.join(run.command)}' ended with {run.code}: {run.said()}")
        return run

    def use(self, repository, key):
        self.environment["TRADEWIND_REPOSITORY"], self.environment["TRADEWIND_KEY_FILE"] = str(repository), str(key)

    # --- helpers

    @staticmethod
    def remove(path):
        """Removes a file or tree; trees of the tests are deeper than Python's rmtree goes."""
        subprocess.run(["rm", "-rf", "--one-file-system", "--", path], check=False)

    def same_tree(self, a, b, *options):
        """(equal, what compare.py said)"""
        done = subprocess.run([sys.executable, COMPARE, a, b, *options], capture_output=True, text=True, check=False)
        return done.returncode == 0, done.stdout + done.stderr

    def same_blocks(self, a, b):
        done = subprocess.run([sys.executable, BLOCKS, "same", a, b], capture_output=True, text=True, check=False)
        return done.returncode == 0, (done.stdout + done.stderr).strip()

    def python(self, *arguments):
        done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{self.name}: error: {arguments[0]}: {(done.stdout + done.stderr).strip()}")
        return done.stdout

    def held(self, *command):
        """A helper that ends when its standard input does, so with this script."""
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.stack.callback(self._let_go, process)
        return process

    @staticmethod
    def _let_go(process):
        process.stdin.close()
        process.wait(30)

    def server(self, kind, *options):
        """Starts an S3 server; its values are those that servers.sh prints."""
        where = self.work / f"server-{kind}"
        self.held(TESTS / "servers" / "servers.sh", "serve", kind, where, *options)
        self.wait(60, f"{kind} to start", lambda: (where / "env").is_file() and (where / "env").stat().st_size)
        lines = (where / "env").read_text().splitlines()
        values = dict(line.split("=", 1) for line in lines)
        self.environment |= {k: v for k, v in values.items() if k.startswith("AWS_")}
        self.store = ["--endpoint", values["S3_ENDPOINT"], "--path-style", "--region", values["AWS_REGION"]]
        self.store += ["--ca-file", values["S3_CA_FILE"]] if values["S3_CA_FILE"] not in ("", "''") else []
        return values

    def loop_device(self, path, sector=512):
        process = self.held(TESTS / "loops.sh", f"dev:{path}:{sector}")
        return process.stdout.readline().strip()

    @staticmethod
    def wait(seconds, what, ready):
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise SystemExit(f"waited {seconds} s for {what}")
            time.sleep(0.02)


def size(count):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""
