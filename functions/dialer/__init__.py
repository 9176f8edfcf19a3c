"""Dialing: what places the calls that the core lets through, and the carriers that it places them with."""
