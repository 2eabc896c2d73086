"""`python -m dogbreed.cache`: list, verify and delete the feature stores."""

import os
import sys
from collections.abc import Sequence

from dogbreed.core.cli import guard, parser

_EPILOG = """\
examples:
  python -m dogbreed.cache                 list the stores, the most recently used first
  python -m dogbreed.cache verify          check every row against its checksum
  python -m dogbreed.cache delete KEY ...  delete stores (a few characters of the key do); `all` deletes every one
  python -m dogbreed.cache prune           delete frozen weights that no run has any more
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    frame = parser("python -m dogbreed.cache", "The features kept on disk.", _EPILOG)
    frame.add_argument("--dir", type=os.path.expanduser, help="cache folder (default: the user's, or $DOGBREED_CACHE)")
    actions = frame.add_subparsers(dest="action")
    actions.add_parser("list", help="what is there (default)")
    actions.add_parser("verify", help="check every row")
    actions.add_parser("prune", help="delete frozen weights that no run has any more")
    actions.add_parser("delete", help="delete stores").add_argument("key", nargs="+")
    arguments = frame.parse_args(argv)

    def act() -> int:
        from dogbreed.cache.manage import manage

        return manage(arguments.action or "list", arguments.dir, getattr(arguments, "key", ()))

    return guard(act)


if __name__ == "__main__":
    sys.exit(main())
