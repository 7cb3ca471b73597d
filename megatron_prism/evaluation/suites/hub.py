"""Files of data sets on the Hugging Face hub, through huggingface_hub's cache; a failure says what to give instead.

huggingface_hub reads HF_ENDPOINT (another address of the hub), HF_TOKEN (for gated data), HF_HOME and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from megatron_prism.errors import DataError

TOKEN = "HF_TOKEN"
CONNECT_SECONDS = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(DataError):
    """A file of the hub that cannot be had. `unreachable`: because nobody answers, which holds for all files."""

    unreachable = False


@dataclass(frozen=True)
class HubFile:
    """A file in the cache, and the commit of the data set that it belongs to."""

    path: Path
    commit: str


def hub_file(repository: str, file: str, revision: str, *, benchmark: str, network: bool = True) -> HubFile:
    """A file of a data set, from the cache or downloaded into it.

    Args:
        benchmark: named in the advice how to give a local file instead.
        network: False: only the cache is asked.

    Raises:
        HubError: if it cannot be had: no network, no such repository, revision or file, or a gated data set.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable = False
    try:
        try:
            # A commit never changes, so that its file in the cache needs no network.
            cached = is_commit(revision) or not (network and _reachable())
            found = hf_hub_download(
                repository, file, repo_type="dataset", revision=revision, local_files_only=cached
            )
        except LocalEntryNotFoundError:
            # Asked again only if somebody answers: without a network, huggingface_hub tries for half a minute.
            if not (network and _reachable()):
                raise
            found = hf_hub_download(repository, file, repo_type="dataset", revision=revision)
        path = Path(found)
    except GatedRepoError:
        reason = f"it is gated; accept its terms on its page and set {TOKEN}"
    except RepositoryNotFoundError:
        reason = f"the hub has no such data set, or it is private and {TOKEN} is not set"
    except RevisionNotFoundError:
        reason = f"it has no revision '{revision}'"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        unreachable = True
        reason = "the hub cannot be reached, and the file is not in the cache"
    except EntryNotFoundError:
        reason = "it has no such file"
    except HFValidationError as problem:
        reason = str(problem).splitlines()[0]
    except (HfHubHTTPError, OSError) as problem:
        reason = f"the hub does not answer ({str(problem).splitlines()[0]})"
    else:
        return HubFile(path, _commit(path))
    failed = HubError(
        f"benchmark '{benchmark}': {file} of data set {repository} (revision {revision[:12]}): {reason}; or download "
        f"that file elsewhere and give it with --data {benchmark}=FILE (prism eval) or "
        f"benchmarks.data.{benchmark}=FILE (prism run)"
    )
    failed.unreachable = unreachable
    raise failed


def is_commit(revision: str) -> bool:
    """Whether a revision is the full hash of a commit, whose files never change."""
    return bool(_COMMIT.fullmatch(revision))


def _reachable() -> bool:
    """Whether the hub accepts a connection; taken for granted behind a proxy, false if the user wants no network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _commit(path: Path) -> str:
    """The commit in the path of a cached file: .../snapshots/COMMIT/FILE."""
    parts = path.parts
    return parts[len(parts) - 1 - parts[::-1].index("snapshots") + 1] if "snapshots" in parts else ""
