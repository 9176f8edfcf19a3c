"""Code that every function shares: settings, HTTP, authentication, database, logging."""
