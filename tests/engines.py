"""The samplers, of those that the installed transformers has."""

from importlib import metadata

import pytest

from eval.rollout.sample import SAMPLERS
from trainers.config.checks import CONTINUOUS, knows_continuous

# with an older transformers it is refused in one line, which has a test of its own
needs_continuous = pytest.mark.skipif(
    not knows_continuous(metadata.version("transformers")),
    reason=f"continuous batching needs transformers {CONTINUOUS[0]}.{CONTINUOUS[1]}",
)
ENGINES = [
    pytest.param(name, marks=needs_continuous) if name == "continuous" else name
    for name in SAMPLERS
]
