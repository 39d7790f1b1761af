"""The bodies of the Responses and the Messages API."""
