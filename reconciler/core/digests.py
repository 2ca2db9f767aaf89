"""SHA-256 and BLAKE2b as Python has them built in: `hashlib` would load OpenSSL for them, which takes a
program that lives for some milliseconds two."""

try:
    from _blake2 import blake2b

    try:
        from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore]  # from 3.12 on
    except ImportError:
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # another Python, or one that trusts OpenSSL's alone
    from hashlib import blake2b, sha256

__all__ = ["blake2b", "sha256"]
