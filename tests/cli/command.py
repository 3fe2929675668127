"""What the tests of the command share. Python's standard library only."""
import json
import os
import pty
import re
import shutil
import subprocess


def refused(case, run, status, code, args, env):
    """`run(*args, **env)` must fail with one error line with `code` and nothing on stdout, and with --json say the same as an
    object. Returns the message."""
    done = run(*args, **env)
    case.assertEqual(done.returncode, status, (args, done.stdout, done.stderr))
    case.assertEqual(done.stdout, "", (args, done.stderr))
    match = re.fullmatch(r"graft: error: ([a-z0-9_]+): (.+)\n", done.stderr)
    case.assertTrue(match, done.stderr)
    case.assertEqual(match[1], code, done.stderr)
    done = run(*args, "--json", **env)
    case.assertEqual(done.returncode, status, (args, done.stdout, done.stderr))
    case.assertEqual(json.loads(done.stdout), {"error": {"code": code, "message": match[2]}})
    return match[2]


def on_terminal(argv, stream, env, timeout):
    """Runs with `stream` ("stdout" or "stderr") as a terminal, the other away; returns the bytes that were written to it."""
    master, slave = pty.openpty()
    other = "stderr" if stream == "stdout" else "stdout"
    process = subprocess.Popen([*map(str, argv)], stdin=subprocess.DEVNULL, env=env, **{stream: slave, other: subprocess.DEVNULL})
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # how Linux tells that the last writer is gone
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    assert process.wait(timeout) == 0, seen
    return seen


def copy_adapter(source, target):
    """A copy that may be changed, whatever the original's permissions are."""
    shutil.copytree(source, target)
    for file in target.iterdir():
        file.chmod(0o600)
    return target
