"""Dashboards that were made elsewhere, as files: features with their examples, and neither model nor weights.

neuronpedia_files    what Neuronpedia's bulk files hold, line by line, checked
spool                the same on disk as packed numbers, so that an import goes on where it stopped
neuronpedia_in       from there to the records of an index
neuronpedia_out      from a stored index to the same files
"""

from sae_core.errors import WeightsError
from sae_core.records import SAEInfo

NEURONPEDIA = "neuronpedia"


def check_has_weights(sae: SAEInfo) -> None:
    """Raises WeightsError for an SAE of which only a dashboard is here: nothing can be run through it."""
    if not sae.weights_path:
        raise WeightsError(
            f"Of {sae.slug} only the dashboard is here, without weights, so no text can be run through it; "
            "import its weights too, under another slug (saescope import)."
        )
