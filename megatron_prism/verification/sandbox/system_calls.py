"""The seccomp filter: the system calls that are refused to a program in the sandbox.

Namespaces, user ids and an almost empty root directory already contain a program. The filter also refuses calls whose
effects would outlive the program in a warm sandbox (System V and POSIX queues, keyrings), calls that affect the
sandbox's first process, which has the same user (limits, priorities, memory), and large parts of the kernel that no
answer needs. Refused calls fail with EPERM, as they do for a user without privileges.

Numbers: Linux, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import errno
import platform
import struct

from megatron_prism.errors import ConfigError

# name: (x86_64, aarch64); None where the architecture has no such call.
# fmt: off
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    # effects that would outlive the program
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # the times of devices and of files that other programs see; and which files others have read
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "cachestat": (451, 451),
    # namespaces, mounts and roots
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "statmount": (457, 457),
    "listmount": (458, 458), "quotactl_fd": (443, 443), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # the network
    "socket": (41, 198),
    # the machine
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "personality": (135, 92), "fanotify_init": (300, 262), "lookup_dcookie": (212, 18),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "vhangup": (153, 58),
}
# fmt: on
CLONE, PRLIMIT, CLONE3 = (56, 220), (302, 261), (435, 435)
# linux/sched.h: mounts, control groups, host name, System V, users, processes, network. The namespace of clocks is not
# included, because its bit means something else to clone.
NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# Classic BPF, linux/bpf_common.h and linux/seccomp.h.
_LOAD, _EQUAL, _AND_ANY, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000


def seccomp_filter(machine: str | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`, by default for the architecture of this machine.

    Raises:
        ConfigError: for an architecture whose call numbers are not listed.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise ConfigError(
            f"architecture {machine}: the system call filter supports only {' and '.join(ARCHITECTURES)}"
        )
    column, audit = ARCHITECTURES[machine]
    refuse = _ERRNO | errno.EPERM
    program = [
        *((_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL)),
        *((_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, refuse)),
        # The arguments of clone3 are behind a pointer, which a filter cannot read; without clone3, libc uses clone.
        *((_EQUAL, 0, 1, CLONE3[column]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)),
    ]
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    program += [
        *((_EQUAL, 0, 4, CLONE[column]), (_LOAD, 0, 0, _FIRST), (_AND_ANY, 0, 1, NEW_NAMESPACES)),
        *((_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)),
        # A program may limit itself but not the first process, whose limits every later program inherits.
        *((_EQUAL, 0, 3, PRLIMIT[column]), (_LOAD, 0, 0, _FIRST), (_EQUAL, 1, 0, 0)),
        *((_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
