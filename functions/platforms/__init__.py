"""Entry points for platforms that do not take an ASGI app as it is. README.md says how to deploy on each."""
