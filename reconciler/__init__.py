"""runcnet: container networks for plain runc, declared in YAML and kept by a reconciler."""

__version__ = "0.1.0"
