"""What every function shares: settings, HTTP, authentication, database, logging."""
