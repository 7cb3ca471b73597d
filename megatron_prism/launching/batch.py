"""What Slurm's batch script does around a stage: where the nodes meet, and when the job goes back into the queue.

The lines run on the first node, outside any container, because `scontrol` is there. The stage itself cannot decide:
a pre-emption and `scancel` both send SIGTERM, and only Slurm knows which it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_prism.errors import REQUEUE_EXIT, USER_ERROR_EXIT
from megatron_prism.launching.executor import Resources
from megatron_prism.launching.job import ELSEWHERE, LOST
from megatron_prism.launching.rendezvous import FIRST_PORT, HEAD, PORT, PORTS

# Whether all nodes of the job still answer.
PROBE = 'timeout 60 srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 true'
# Of the addresses that `hostname --ip-address` prints, torchrun takes one.
HEAD_NODE = "${head_node_ip%% *}"
# The next port to try, if one is taken: not that of the next job, which may run on the same node.
STRIDE, PORTS_TRIED = 97, 100


def head_node() -> dict[str, str]:
    """The variable that tells all nodes the address of the first; nemo-run's script has computed it."""
    return {HEAD: HEAD_NODE}


def setup_lines(marker: str, resources: Resources, members: Sequence[str] = (), *, nodes: int = 1) -> str:
    """Lines for the batch script.

    Args:
        marker: the file that the stage leaves when it has saved its state or lost a process, as a word of the shell.
        members: the stages of an array, for a reader.
    """
    lines = [f"# Array task {place}: stage {name}" for place, name in enumerate(members)]
    # Before the user's lines, which may take minutes and may fail.
    lines += _back_into_the_queue(marker, resources.restarts) if resources.requeue else []
    lines += [line for line in resources.setup.splitlines() if line.strip()]
    lines += _free_port() if nodes > 1 else []
    return "\n".join(lines)


def _back_into_the_queue(marker: str, restarts: int) -> list[str]:
    return [
        # The batch shell must outlive the signals that the stage answers by saving its state.
        "trap : TERM USR1",
        # As of an attempt whose node was lost.
        f"rm -f {marker}",
        "prism_put_back() {",
        "  prism_exit=$?",
        # The number of an array's last task is that of the array, so tasks are named by array and place.
        "  prism_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "  prism_job=${prism_job:-$SLURM_JOB_ID}",
        # The script runs with `set -e`, and the exit code of the trap would be that of the job.
        f"  prism_code=$(cat {marker} 2>/dev/null) || :",
        f"  rm -f {marker}",
        # What another node says wins: the first was only stopped because that one failed.
        f'  case "$prism_exit" in {ELSEWHERE + LOST}) prism_code={LOST};;',
        f"    {ELSEWHERE + USER_ERROR_EXIT}) prism_code=;; esac",
        '  prism_shown=$(scontrol --oneliner show job "$prism_job") || :',
        # Otherwise Slurm is ending the job already: the user has cancelled it, or a node is lost and it starts again.
        '  case "$prism_shown" in *" JobState=RUNNING "*) ;; *) return 0;; esac',
        # Slurm pre-empts the job. The signal may have come before anything could answer it.
        f'  case "$prism_exit:$prism_shown" in 0:*|{USER_ERROR_EXIT}:*|*" PreemptTime=None "*) ;;',
        f'    *" PreemptTime="*) prism_code={REQUEUE_EXIT};; esac',
        '  [ -n "$prism_code" ] || return 0',
        # Stopped and saved; or a node was lost, which Slurm notices only minutes later; any other end is a crash, of
        # which only some are allowed.
        f'  [ "$prism_code" = {REQUEUE_EXIT} ] || ! {PROBE} \\',
        f'    || [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ] || return 0',
        '  echo "prism: the job goes back into the queue"',
        # Slurm ends this script. An exit of its own could be taken for that of the next try.
        '  scontrol requeue "$prism_job" && sleep 60',
        "}",
        "trap prism_put_back EXIT",
    ]


def _free_port() -> list[str]:
    """One port for all nodes, which nothing on the first node uses now; the first to try is the job's own."""
    return [
        f"export {PORT}=$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))",
        f"for ((prism_try = 0; prism_try < {PORTS_TRIED}; prism_try++)); do",
        # The kernel's lists of sockets: local address and port, in hexadecimal digits.
        f'  grep -qis "^ *[0-9]*: [0-9A-F]*:$(printf %04X "${PORT}") " /proc/net/tcp /proc/net/tcp6 || break',
        f"  {PORT}=$(({FIRST_PORT} + ({PORT} - {FIRST_PORT} + {STRIDE}) % {PORTS}))",
        "done",
    ]
