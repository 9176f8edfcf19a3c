"""The cost of wide data in the contact's row for the bulk skip: the reason for the table of custom_data."""

from __future__ import annotations

from functools import partial
from statistics import median
from uuid import uuid4

from .lab import Lab, Measurement, progress
from .report import milliseconds, ratio, table, whole

WIDTH = 600

# PostgreSQL considers storing a value out of line only for rows over about 2 kB; toast_tuple_target
# then says how far to shrink them, not which rows to look at.
_TABLES = """
drop schema if exists wide cascade;
create schema wide;
create table wide.apart (like public.campaign_contacts including all);
alter table wide.apart set (fillfactor = 45);
create table wide.apart_data (like public.contact_data including all);
create table wide.inline (like public.campaign_contacts including all, custom_data jsonb not null);
alter table wide.inline set (fillfactor = 45, toast_tuple_target = 128);
"""
_DATA = f"""
jsonb_build_object('notes', left(array_to_string(array(
  select md5((i * 100 + k)::text) from generate_series(1, {WIDTH // 32}) k), ''), {WIDTH - 20}))
"""
_LOAD_APART = f"""
insert into wide.apart (agency_id, batch_id, id, phone_number)
select %(agency)s, %(batch)s, i, '+1555' || lpad(i::text, 7, '0') from generate_series(1, %(size)s) i;
insert into wide.apart_data (agency_id, batch_id, contact_id, custom_data)
select %(agency)s, %(batch)s, i, {_DATA} from generate_series(1, %(size)s) i;
"""
_LOAD_INLINE = f"""
insert into wide.inline (agency_id, batch_id, id, phone_number, custom_data)
select %(agency)s, %(batch)s, i, '+1555' || lpad(i::text, 7, '0'), {_DATA}
  from generate_series(1, %(size)s) i;
"""
_SKIP = """
update wide.{table} set status = 'skipped', outcome_notes = 'Batch cancelled'
 where agency_id = %s and batch_id = %s and status in ('pending', 'scheduled', 'queued')
"""


def run(lab: Lab, size: int, runs: int) -> str:
    """The table of both ways to store the data."""
    measured: dict[str, list[Measurement]] = {"apart": [], "inline": []}
    for number in range(runs):
        for name, measurements in measured.items():
            progress(f"wide, {name}, run {number + 1}")
            measurements.append(_measure(lab, name, size))
    apart = median(m.seconds for m in measured["apart"])
    out_of_line, toast_bytes = _toasted(lab)
    rows = [
        [
            title,
            milliseconds(median(m.seconds for m in measured[name])),
            whole(median(m.wal_per_contact for m in measured[name])),
            ratio(median(m.seconds for m in measured[name]) / apart),
        ]
        for name, title in (("apart", "in contact_data"), ("inline", "in the contact's row"))
    ]
    return table(
        "Wide rows",
        f"The bare update of {whole(size)} contacts with {WIDTH} bytes of custom_data each; medians of "
        f"{runs} runs. The column in the row is asked to go out of line (`toast_tuple_target = 128`), and in "
        f"{whole(out_of_line)} of {whole(size)} rows it did (TOAST table: {whole(toast_bytes)} bytes): "
        "PostgreSQL considers it for rows over about 2 kB only.",
        ["custom_data", "ms", "WAL bytes/contact", "ratio"],
        rows,
    )


def _measure(lab: Lab, name: str, size: int) -> Measurement:
    agency_id, batch_id = uuid4(), uuid4()
    lab.owner.execute(_TABLES)
    for statement in (_LOAD_APART if name == "apart" else _LOAD_INLINE).split(";\n")[:-1]:
        lab.owner.execute(statement.encode(), {"agency": agency_id, "batch": batch_id, "size": size})
    lab.settle(f"wide.{name}")
    with lab.connect() as connection:
        update = partial(connection.execute, _SKIP.format(table=name).encode(), [agency_id, batch_id])
        measurement = lab.measure(lambda: update().rowcount)
    assert measurement.contacts == size
    return measurement


def _toasted(lab: Lab) -> tuple[int, int]:
    """The values that went out of line in the inline table as it was left, and their size."""
    row = lab.owner.execute(
        "select count(pg_column_toast_chunk_id(custom_data)), pg_relation_size(("
        " select reltoastrelid from pg_class where oid = 'wide.inline'::regclass)) from wide.inline"
    ).fetchone()
    assert row is not None
    return row[0], row[1]
