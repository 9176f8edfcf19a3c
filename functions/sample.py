"""The sample of `lastcall serve --sample`: an agency, its owner and a batch, and commands to try on them."""

from __future__ import annotations

from .migrations import sample_statements

_AGENCY = "5eed0000-0000-4000-8000-00000000000a"
OWNER = "5eed0000-0000-4000-8000-0000000000a1"
_BATCH = "5eed0000-0000-4000-8000-0000000000b1"
TOKEN_LASTS_S = 24 * 3600


def load_sample(database_url: str) -> None:
    """Delete the sample agency with all its rows, and insert the sample anew.

    database_url: of the core's owner. Raises psycopg.Error.
    """
    import psycopg

    with psycopg.connect(database_url) as connection:
        connection.execute("delete from public.agencies where id = %s", [_AGENCY])
        connection.execute(sample_statements())


def commands(url: str, token: str) -> str:
    """The token and three commands to paste into another terminal. url: the running service's."""
    cancel = f"""{url}/functions/v1/calls-batch-cancel -d '{{"batch_id": "{_BATCH}"}}'"""
    return f"""
The sample: agency 'Acme Calls', and a batch of 500 contacts. In another terminal:

export LASTCALL_URL={url} LASTCALL_TOKEN={token}
lastcall show {_BATCH}
curl -H "Authorization: Bearer $LASTCALL_TOKEN" {cancel}
lastcall psql -c 'table v_call_batch_summary'
"""
