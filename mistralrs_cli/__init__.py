"""The terminal application: words become one call of ``mistralrs.api``, answers go to stdout, the rest to stderr."""
