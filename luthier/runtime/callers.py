"""Who calls, as the headers of HTTP or the metadata of gRPC say it.

Whoever can reach the server can write these. Where tenants must not take each other's turns, the
proxy that knows them sets both and drops what came from outside.
"""

from __future__ import annotations

from collections.abc import Mapping

from luthier.data_model.caller import Caller
from luthier.errors import InvalidInputError

TENANT_KEY = "x-luthier-tenant"
PRIORITY_KEY = "x-luthier-priority"
MAX_TENANT_CHARS = 128


def caller_of(headers: Mapping[str, str]) -> Caller:
    """Read who calls.

    Args:
        headers: By lower-case name.

    Returns:
        The caller; nobody in particular where the headers say nothing.

    Raises:
        InvalidInputError: If the name is too long or cannot be shown, or the priority is no number.
    """
    tenant = headers.get(TENANT_KEY, "").strip()
    if len(tenant) > MAX_TENANT_CHARS:
        raise InvalidInputError(
            f"'{TENANT_KEY}' has {len(tenant)} characters, at most {MAX_TENANT_CHARS} are allowed"
        )
    if not tenant.isprintable():
        raise InvalidInputError(f"'{TENANT_KEY}' must be printable text, got {tenant!r}")
    return Caller(tenant, _priority(headers.get(PRIORITY_KEY, "").strip()))


def _priority(text: str) -> int:
    if not text:
        return 0
    try:
        # A number of 5,000 digits would only make the message of the limit long.
        return int(text[:20])
    except ValueError as error:
        raise InvalidInputError(f"'{PRIORITY_KEY}' must be int, got {text[:80]!r}") from error
