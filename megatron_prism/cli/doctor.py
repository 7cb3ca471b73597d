"""`prism doctor`: the hardware, packages and programs of this machine."""

from __future__ import annotations

from dataclasses import asdict

from megatron_prism.cli.output import JsonOption, check_json_target, show_table, write_result


def doctor(json_file: JsonOption = None) -> None:
    """Show the hardware, packages and programs of this machine, and what each is needed for."""
    check_json_target(json_file)
    from megatron_prism.platform.doctor import Check, diagnose
    from megatron_prism.verification.sandbox.bubblewrap import bubblewrap_version
    from megatron_prism.verification.sandbox.isolation import sandbox_problem

    problem = sandbox_problem()
    found = f"bubblewrap {bubblewrap_version()}, tested with a program" if problem is None else problem
    unlocks = "grading programs in isolation; without it only with sandbox=weak"
    checks = [*diagnose(), Check("sandbox", problem is None, found, unlocks)]
    rows = [("yes" if check.found else "no", check.name, check.detail, check.unlocks) for check in checks]
    show_table(json_file, "this machine", ["found", "what", "details", "needed for"], rows)
    write_result(json_file, [asdict(check) for check in checks])
