"""Hostile input. The rule for all of it: a 4xx, or a 2xx where it is valid after all; never a 500, and nothing of it
in the log.

The examples are the same in every run. FUZZ_EXAMPLES=2000 (`make fuzz`) tries so many, others each time: a failure
prints their seed, and FUZZ_SEED with that seed tries the same ones again.
"""
