"""SAEs on the Hugging Face hub: `OWNER/REPO[/FOLDER][@REVISION]`, fetched into the hub's own cache.

Only the weights file and the settings beside it are fetched; what was fetched before is not fetched again, and a
download that broke off goes on. A repository of many SAEs is refused with their names, so that one can be named.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sae_core.errors import ConfigError, WeightsError
from sae_core.formats import source

_ADDRESS = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<inner>[^@]+?))?/?(?:@(?P<revision>[\w./-]+))?")
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Address:
    """Where on the hub an SAE lies."""

    repo: str
    inner: str  # a folder or file in it; "" for the whole
    revision: str | None


def hub_address(text: str) -> Address | None:
    """The address that the text means; None if it means a path on this machine."""
    if text.startswith((".", "/", "~")) or Path(text).exists():
        return None
    match = _ADDRESS.fullmatch(text)
    return Address(match["repo"], match["inner"] or "", match["revision"]) if match else None


def fetched(address: Address) -> Path:
    """The weights file of the SAE there, on this machine. Raises WeightsError and ConfigError in one sentence each."""
    from huggingface_hub import HfApi, hf_hub_download

    with _hub_errors(address):
        info = HfApi().model_info(address.repo, revision=address.revision, timeout=10)
        names = [sibling.rfilename for sibling in info.siblings or []]
        weights = _weights(address, names)
        paths = {}
        for name in [weights, *source.settings_beside(weights, names)]:
            paths[name] = hf_hub_download(address.repo, name, revision=info.sha or address.revision)
        return Path(paths[weights])


def _weights(address: Address, names: list[str]) -> str:
    """The name of the one weights file at the address."""
    inner = PurePosixPath(address.inner)
    if address.inner in names:
        return address.inner
    below = [name for name in names if PurePosixPath(name).is_relative_to(inner)] if address.inner else names
    found = source.weights_among(below)
    if len(found) == 1:
        return found[0]
    where = f"{address.repo}/{address.inner}" if address.inner else address.repo
    if not found:
        raise WeightsError(f"There are no SAE weights in {where} on the hub; check the folder's name.")
    folders = list(dict.fromkeys(str(PurePosixPath(name).parent) for name in found))
    folders = folders if len(folders) == len(found) else found
    shown = ", ".join(sorted(folders)[:_SHOWN]) + (", …" if len(folders) > _SHOWN else "")
    raise ConfigError(f"{where} holds {len(folders)} SAEs; name one of them, as {address.repo}/FOLDER: {shown}.")


@contextmanager
def _hub_errors(address: Address) -> Iterator[None]:
    """Turns what the hub and the network raise into one sentence that says what to do."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (WeightsError, ConfigError):
        raise
    except GatedRepoError as error:
        said = "is gated: accept its licence on its hub page, then run `hf auth login`"
        raise WeightsError(f"The hub's {address.repo} {said}.") from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"{address.repo} has no revision {address.revision}; check what stands behind @.") from error
    except RepositoryNotFoundError as error:
        said = "is no path here, and not on the hub (or is private): check the name, or run `hf auth login`"
        raise WeightsError(f"{address.repo} {said}.") from error
    except EntryNotFoundError as error:
        raise WeightsError(f"A file of {address.repo} is gone from the hub; run the same command again.") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "an error"
        raise WeightsError(f"The hub answered {code} for {address.repo}; run the same command again later.") from error
    except Exception as error:  # offline, in as many ways as there are networks
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise WeightsError(
            f"{address.repo} is no path here and the hub cannot be reached ({detail}): check the path or the network; "
            "what is fetched already is not fetched again."
        ) from error
