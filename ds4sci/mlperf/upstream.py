"""The checker of ``mlperf-logging`` with one finding per failed rule. Importing this module needs that package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlperf_logging.compliance_checker import mlp_compliance, mlp_parser

from ds4sci.mlperf import RULES_VERSION
from ds4sci.mlperf.log_file import Finding, LogFile


class RecordingChecker(mlp_compliance.ComplianceChecker):
    """Upstream's checker, which also records where each rule failed.

    Repeated keys count as errors even if their values agree. A later rule file replaces no finding of an earlier one.
    """

    def __init__(self, log: LogFile) -> None:
        super().__init__("hpc", RULES_VERSION, quiet=True, werror=True)
        self.log = log
        self.findings: list[Finding] = []
        self._test: tuple[Any, str] | None = None

    def run_check_eval(self, ll: Any, tests: Any, state: Any) -> None:
        """Evaluate each test of a rule on its own, so that each failure is recorded."""
        for test in tests if isinstance(tests, list) else [tests]:
            self._test = ll, test
            super().run_check_eval(ll, test, state)
        self._test = None

    def put_message(self, msg: str, key: str | None = None) -> None:
        """Record a failure."""
        super().put_message(msg, key)
        line, reason = None, msg.splitlines()[0]
        if self._test is not None:
            event, test = self._test
            line = self.log.marked[event.lineno]
            expression, _, comment = test.strip().partition(" # ")
            shown = f"{key} = {event.value['value']!r}"
            reason = f"{shown}: {comment}" if comment else f"{shown}: expected {expression}"
            if not msg.startswith("CHECK"):
                reason += " (the rule cannot be evaluated on this line)"
        self.findings.append(Finding(self.log.file, line, key or "rules", reason))

    def overwrite_messages(self, keys: Any) -> None:
        """Keep the findings of earlier rule files."""

    def log_messages(self) -> None:
        """Print nothing: findings are returned."""


def apply_rules(log: LogFile, rules: str) -> list[Finding]:
    """Return the findings of the rule file ``rules`` and of those that it adds to the queue.

    rules  absolute path, or a path below upstream's rule folder
    """
    checker = RecordingChecker(log)
    mlp_compliance.enqueued_configs.clear()  # a module-level list that an exception would leave filled
    try:
        lines, _ = mlp_parser.parse_file(str(log.file), ruleset=RULES_VERSION)
        checker.check_loglines(lines, rules)
    except Exception as error:  # upstream evaluates some rules without a guard
        reason = f"upstream's checker stopped on this log with {type(error).__name__}: {error}"
        checker.findings.append(Finding(log.file, None, Path(rules).stem, reason))
    finally:
        mlp_compliance.enqueued_configs.clear()
    return list(dict.fromkeys(checker.findings))
