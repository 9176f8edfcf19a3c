"""Bad days: too many clients, slow ones, and a database that is slow, silent or gone."""
