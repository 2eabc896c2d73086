"""The version, in one place: the package, its commands, the files it writes and the wheel read it here."""

__version__ = "0.1.0"
