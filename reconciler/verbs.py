"""What `runcnet-reconcile` and `runcnet` can be asked, and who answers."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from reconciler import __version__, commands
from reconciler.options import Parser, common, period
from reconciler.running import guarded, need_privileges


def reconcile(words: Sequence[str]) -> int:
    """`runcnet-reconcile`, up to its exit code."""
    parser = Parser(
        prog="runcnet-reconcile",
        parents=[common()],
        description="Make the kernel match the definition files.",
    )
    parser.add_argument("--once", action="store_true", help="one pass, then exit")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, change nothing")
    parser.add_argument("--check", action="store_true", help="as --dry-run; exit 3 if it differs")
    parser.add_argument("--resync", type=period, default=60.0, metavar="SECONDS",
        help="without --once: look at everything at least so often (60)")  # fmt: skip
    parser.add_argument("--metrics", metavar="ADDRESS",
        help="without --once: Prometheus metrics at HOST:PORT, or at the path of a unix socket")  # fmt: skip
    parser.add_argument("--private-mounts", action="store_true",
        help="without --once: the netns dir is meant for this mount namespace alone")  # fmt: skip
    parser.add_argument("--version", action="version", version=f"runcnet {__version__}")
    options = parser.parse_args(words)

    def run() -> int:
        need_privileges()
        if not (options.once or options.dry_run or options.check):
            return commands.serve(options)
        return commands.one_pass(options, dry=options.dry_run or options.check)

    return guarded(run)


def main(words: Sequence[str]) -> int:
    """`runcnet`, up to its exit code."""
    # A pass, which comes in by the other door, begins to look before all is loaded.
    from reconciler import bundles, hook, listing, sandboxes

    parser = Parser(prog="runcnet", description="Container networks for plain runc.")
    parser.add_argument("--version", action="version", version=f"runcnet {__version__}")
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = common()

    asked = words[0] if words and not words[0].startswith("-") else None

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        # To give the shared options to all of them takes longer than to make a container.
        parents = [shared] if asked in (None, name) else []
        one = verbs.add_parser(name, parents=parents, help=text, description=text)
        one.set_defaults(run=run)
        return one

    plan = command("plan", commands.run_plan, "print what a pass would change")
    plan.add_argument("names", nargs="*", metavar="NAME")
    plan.add_argument("--commands", action="store_true", help="as ip and iptables commands")
    apply = command("apply", commands.run_apply, "one pass, of these names alone where given")
    apply.add_argument("names", nargs="*", metavar="NAME")
    trial = command("try", commands.run_try, "one pass, taken back unless it is confirmed in time")
    trial.add_argument("--timeout", type=period, default=60.0, metavar="S")
    answers = trial.add_mutually_exclusive_group()
    answers.add_argument("--confirm", action="store_true", help="keep what another process tries")
    answers.add_argument("--take-back", action="store_true", help="end what another process tries")
    trial.add_argument("words", nargs="*", metavar="-- CMD...", help="edits files, in the trial")
    validate = command("validate", commands.run_validate, "check definition files; any user may")
    validate.add_argument("files", nargs="*", metavar="FILE")
    status = command("status", commands.run_status, "what is, what differs, where it was declared")
    status.add_argument("name", nargs="?")
    status.add_argument("--all", action="store_true", help="every container, however many they are")
    status.add_argument("--watch", action="store_true", help="follow live, until Ctrl-C")
    status.add_argument("--interval", type=period, default=1.0, metavar="S",
                        help="seconds between two looks (1)")  # fmt: skip
    command("ls", listing.run_ls, "each container: address, host end, pid, state, traffic")
    wait = command("wait", commands.run_wait, "wait until containers or networks are ok")
    wait.add_argument("names", nargs="+", metavar="NAME")
    wait.add_argument("--timeout", type=float, default=60.0, metavar="S")
    command("doctor", commands.run_doctor, "limits of the host that what is declared would meet")
    show = command(
        "show", commands.run_show, "the declaration with every default and address filled in"
    )
    show.add_argument("name", nargs="?")
    execute = command("exec", commands.run_exec, "run a command in a container's network namespace")
    execute.add_argument("name")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="-- CMD...")
    teardown = command("teardown", commands.run_teardown, "remove all that is owned")
    teardown.add_argument("--yes", action="store_true", help="do not ask")
    text = "called by a runtime: attach a container, or take it away"
    called = command("hook", lambda options: hook.run(hook.called(options)), text)
    hook.options_for(called)
    text = "wire a bundle by hand, by hooks or to a namespace; or say what is wrong with it"
    bundles.options_for(command("bundle", bundles.run, text))
    add = command("add", sandboxes.run_add, "declare a container in a file of its own, and make it")
    add.add_argument("name", metavar="NAME")
    add.add_argument("--network", action="append", default=[], metavar=sandboxes.FORM,
                     help="an interface in that network; may be given several times")  # fmt: skip
    add.add_argument("--port", action="append", default=[], metavar="P",
                     help="a published port, as in 8080:80; may be given several times")  # fmt: skip
    add.add_argument("--bundle", metavar="DIR", help="its config.json is wired")
    add.add_argument("--mode", choices=("network", "none", "host"))
    rm = command("rm", sandboxes.run_rm, "take away what `add` declared")
    rm.add_argument("names", nargs="+", metavar="NAME")
    rm.add_argument("--force", action="store_true", help="also what is in use")
    options = parser.parse_args(words)
    return guarded(lambda: int(options.run(options)))
