"""Running a program and knowing how much of the machine others used meanwhile (Linux; elsewhere that is unknown)."""
import os
import subprocess
import tempfile
import time


def busy_seconds():
    """Seconds that all cores together have worked since the machine started."""
    try:
        with open("/proc/stat") as f:
            v = [int(x) for x in f.readline().split()[1:9]]
    except OSError:
        return None
    return (sum(v[:3]) + sum(v[5:8])) / os.sysconf("SC_CLK_TCK")  # user, nice, system, irq, softirq, steal


class Outcome:
    """What a program printed, how it ended, and `others`: cores that other programs kept busy while it ran."""

    def __init__(self, status, out, err, others):
        self.status, self.out, self.err, self.others = status, out, err, others

    def complaint(self):
        """One line that says what went wrong: the first one with an error in it, or else the last one."""
        lines = [line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower() or "panicked" in line]
        return ((errors or lines[-1:] or [f"exit status {self.status}"])[0])[:300]


def run(argv, limit, env=None, cwd=None):
    """Runs `argv` for at most `limit` seconds; one that takes longer is ended and has status None."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start, before = time.perf_counter(), busy_seconds()
        try:
            child = subprocess.Popen([str(a) for a in argv], stdout=out, stderr=err, stdin=subprocess.DEVNULL,
                                     env={**os.environ, **(env or {})}, cwd=cwd)
        except OSError as e:
            return Outcome(127, "", f"error: {argv[0]}: {e.strerror}", None)
        status, own = None, 0.0
        while status is None:
            done, code, used = os.wait4(child.pid, os.WNOHANG)
            if done:
                status, own = os.waitstatus_to_exitcode(code), used.ru_utime + used.ru_stime
                child.returncode = status
            elif time.perf_counter() - start > limit:
                child.kill()
                child.wait()
                break
            else:
                time.sleep(0.01)
        took, after = time.perf_counter() - start, busy_seconds()
        others = None if after is None or status is None else round(max(0.0, after - before - own) / took, 2)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        if status is None:
            texts[1] += f"\nerror: not done in {limit} s"
        return Outcome(status, *texts, others)


def wait_until_quiet(limit, patience, window=2.0):
    """Waits, at most `patience` seconds, until others use less than `limit` cores."""
    start = time.perf_counter()
    while time.perf_counter() - start < patience:
        before = busy_seconds()
        if before is None:
            return
        time.sleep(window)
        if (busy_seconds() - before) / window < limit:
            return
