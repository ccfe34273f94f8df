"""The unit for systemd, judged by systemd-analyze; no running systemd is needed."""

import pathlib
import re
import subprocess
import tempfile
import tomllib
import unittest

import daemon

UNIT = daemon.ROOT / "systemd/dingd.service"
INSTALLED = "/usr/local/bin/dingd"
# systemd-analyze writes exposure 1.5 as 15.
EXPOSURE_MAX = 15
# The daemon's own deadline for its drain.
DRAIN_S = 30


def analyze(*words):
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, words)], capture_output=True, text=True
    )


def values(name):
    """What the unit says for `name`, one text a line."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def credentials(value):
    """The names behind `credential = "…"` anywhere in a configuration."""
    if isinstance(value, list):
        return set().union(*map(credentials, value))
    if isinstance(value, dict):
        own = {value["credential"]} if "credential" in value else set()
        return own.union(*map(credentials, value.values()))
    return set()


class Unit(unittest.TestCase):
    def test_systemd_accepts_the_unit_without_a_remark(self):
        with tempfile.TemporaryDirectory(prefix="dingd-unit-") as directory:
            # The binary is installed nowhere yet, and systemd-analyze wants to see it.
            copy = pathlib.Path(directory) / UNIT.name
            copy.write_text(UNIT.read_text().replace(INSTALLED, str(daemon.BINARY)))
            run = analyze("verify", "--man=no", copy)
        # Remarks on other units of this machine are not about ours.
        remarks = [line for line in run.stderr.splitlines() if UNIT.name in line]
        self.assertEqual((run.returncode, remarks), (0, []), run.stderr)

    def test_the_unit_is_hardened(self):
        run = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", UNIT)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertIn("Overall exposure level", run.stdout)

    def test_the_unit_and_the_example_configuration_name_the_same_credentials(self):
        example = tomllib.loads((daemon.ROOT / "config.example.toml").read_text())
        loaded = {value.split(":")[0] for value in values("LoadCredential")}
        self.assertEqual(loaded, credentials(example))

    def test_the_drain_has_time_before_systemd_kills(self):
        [seconds] = values("TimeoutStopSec")
        self.assertGreater(int(seconds), DRAIN_S)

    def test_a_wrong_configuration_ends_with_the_code_that_is_not_restarted(self):
        [code] = values("RestartPreventExitStatus")
        with tempfile.TemporaryDirectory(prefix="dingd-unit-") as directory:
            config = pathlib.Path(directory) / "config.toml"
            config.write_text("nonsense = 1\n")
            run = subprocess.run([daemon.BINARY, "run", "--config", config], capture_output=True)
        self.assertEqual(run.returncode, int(code), run.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
