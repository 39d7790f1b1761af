"""The OpenAI-compatible server: HTTP to requests of ``api``, and back. Knows no tensor and no file format."""
