"""Going on after a reboot without being asked: an entry by which the system starts a run's search at boot.

A systemd user unit where the services of this user run without a login (lingering), or where that can be switched on
without a password; else a line of the user's crontab; else an error. The entry is made before the search begins.
`on_boot.json` in the run folder says that there is one, so that it is removed with the run: when that is over, by
`stop`, and by `clean`. A supervisor that is ended by a shutdown leaves it.

Source: systemd.service(5) on quoting, loginctl(1), crontab(5).
"""

import contextlib
import os
import pwd
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_lts.errors import EdgeLtsError
from edge_lts.reservation import OWNER_VARIABLE, owner
from edge_lts.runfolder import LOG, RunFolder, read_json, to_bytes, write_atomic

ENTRY = "on_boot.json"
LINGER_STARTS_S = 30.0
_COMMAND_S = 60.0
UNIT = """[Unit]
Description=edge-lts: go on with run {run_id} after a reboot

[Service]
ExecStart={command}
StandardOutput=null
StandardError=append:{log}
OOMPolicy=continue

[Install]
WantedBy=default.target
"""
Run = Callable[[Sequence[str], str], "subprocess.CompletedProcess[str]"]


class OnBootError(EdgeLtsError):
    """Nothing on this board starts programs of this user at boot."""

    exit_code = 5


def run_command(argv: Sequence[str], stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """A command's end, in English; one that cannot be started or does not end counts as failed."""
    environ = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            argv, input=stdin, capture_output=True, text=True, check=False, timeout=_COMMAND_S, env=environ
        )
    except (OSError, subprocess.SubprocessError) as exc:
        return subprocess.CompletedProcess(argv, 127, "", str(exc))


class Boot:
    """What the system starts for this user when it boots. `root` is `/`, and `run` runs commands, but in tests."""

    def __init__(self, *, root: Path = Path("/"), home: "Path | None" = None, run: Run = run_command) -> None:
        user = pwd.getpwuid(os.getuid())
        self.user, self._root, self._run = user.pw_name, root, run
        # Not $XDG_CONFIG_HOME, which the system does not know at boot.
        self.units = Path(home or user.pw_dir) / ".config/systemd/user"
        self._lingering = root / "var/lib/systemd/linger" / user.pw_name
        self._manager = root / f"run/user/{user.pw_uid}/systemd"
        self._switched_on = self.units / ".edge-lts-linger"  # by us, to be switched off again

    def add(self, folder: RunFolder, command: Sequence[str]) -> str:
        """Make the entry that runs `command` (which searches `folder`) at boot; `systemd` or `cron`.

        Raises OnBootError.
        """
        if owner():
            command = ["/usr/bin/env", f"{OWNER_VARIABLE}={owner()}", *command]
        try:
            how = "systemd" if self._is_lingering() else "cron"
            # First, so that nothing is left behind that nobody knows of.
            write_atomic(folder / ENTRY, to_bytes({"how": how}), is_durable=True)
            if how == "systemd":
                self._add_unit(folder, command)
            else:
                self._add_line(folder.run_id, command)
        except OSError as exc:
            raise OnBootError(f"cannot write {exc.filename}: {exc.strerror or exc}") from exc
        except OnBootError:
            (folder / ENTRY).unlink(missing_ok=True)
            raise
        return how

    def drop(self, run_id: str, how: object) -> None:
        """Remove the entry of a run, and with the last one the lingering that was switched on. Raises OSError or
        OnBootError."""
        if how == "cron":
            self._replace_lines(run_id, [])
        else:
            self._remove_unit(run_id)

    # -- systemd -------------------------------------------------------------------------------------------------------

    def _is_lingering(self) -> bool:
        """Whether this user's services start at boot; switches it on where that takes no password."""
        if not (self._root / "run/systemd/system").is_dir():
            return False
        if self._lingering.exists():
            return self._manager.exists()
        if not self._loginctl("enable-linger"):
            return False
        self.units.mkdir(parents=True, exist_ok=True)
        self._switched_on.touch()
        deadline = time.monotonic() + LINGER_STARTS_S
        while not self._manager.exists() and time.monotonic() < deadline:  # without PAM's help it may never come
            time.sleep(0.1)
        if not self._manager.exists():
            self._stop_lingering()
        return self._manager.exists()

    def _stop_lingering(self) -> None:
        self._switched_on.unlink()
        self._loginctl("disable-linger")

    def _loginctl(self, verb: str) -> bool:
        argv = ["loginctl", "--no-ask-password", verb, self.user]
        return any(self._run([*prefix, *argv], "").returncode == 0 for prefix in ([], ["sudo", "-n"]))

    def _unit(self, run_id: str) -> Path:
        return self.units / f"edge-lts-{run_id}.service"

    def _add_unit(self, folder: RunFolder, command: Sequence[str]) -> None:
        unit = self._unit(folder.run_id)
        wanted = self.units / "default.target.wants" / unit.name
        wanted.parent.mkdir(parents=True, exist_ok=True)
        words = " ".join(map(quoted, command))
        log = str(folder / LOG).replace("%", "%%")
        write_atomic(unit, UNIT.format(run_id=folder.run_id, command=words, log=log).encode(), is_durable=True)
        with contextlib.suppress(FileExistsError):
            wanted.symlink_to(unit)  # what `systemctl --user enable` does, which needs a bus that SSH may not give

    def _remove_unit(self, run_id: str) -> None:
        unit = self._unit(run_id)
        for path in (self.units / "default.target.wants" / unit.name, unit):
            path.unlink(missing_ok=True)
        if self._switched_on.exists() and not any(self.units.glob("edge-lts-*.service")):
            self._stop_lingering()

    # -- cron ----------------------------------------------------------------------------------------------------------

    def _add_line(self, run_id: str, command: Sequence[str]) -> None:
        if not self._has_cron():
            raise OnBootError(
                f"nothing on this board starts programs of {self.user} at boot: neither systemd, which would take "
                f"`sudo loginctl enable-linger {self.user}` there, nor cron"
            )
        words = shlex.join([*command, "--detach"]).replace("%", "\\%")
        self._replace_lines(run_id, [f"@reboot {words} >/dev/null 2>&1 {_mark(run_id)}"])

    def _has_cron(self) -> bool:
        for path in (self._root / "proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):
                if path.read_text().strip() in ("cron", "crond"):
                    return True
        return False

    def _replace_lines(self, run_id: str, new: Sequence[str]) -> None:
        done = self._run(["crontab", "-l"], "")
        if done.returncode and "no crontab for" not in done.stderr:  # never write over what could not be read
            raise OnBootError(f"cannot read the crontab of {self.user}: {done.stderr.strip():.200}")
        kept = [] if done.returncode else done.stdout.splitlines()
        lines = [line for line in kept if not line.endswith(_mark(run_id))] + [*new]
        done = self._run(["crontab", "-"], "".join(f"{line}\n" for line in lines))
        if done.returncode:
            raise OnBootError(f"cannot write the crontab of {self.user}: {done.stderr.strip():.200}")


def remove(folder: RunFolder, make_boot: Callable[[], Boot] = Boot) -> bool:
    """Remove the entry of a run; whether there was one.

    Never raises: an entry that cannot be removed starts a search that is over, which ends at once.
    """
    try:
        how = read_json(folder / ENTRY).get("how")
    except (OSError, ValueError):
        return False
    with contextlib.suppress(OSError, OnBootError):
        make_boot().drop(folder.run_id, how)
        (folder / ENTRY).unlink()
    return True


def _mark(run_id: str) -> str:
    return f"# edge-lts {run_id}"


def quoted(word: str) -> str:
    """A word of ExecStart=."""
    for text, escape in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(text, escape)
    return f'"{word}"'
