"""What crosses wires and disks: records, options, parameters, results. No torch, no weights.

Only the patches of third parties are applied here, because they must come before caikit is first
imported; the data objects arrive with their own files.
"""

import luthier.compat  # noqa: F401  before any import of caikit
