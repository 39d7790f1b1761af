"""The adapters of a loaded model: how they are named, found, chosen by requests and changed while serving."""
