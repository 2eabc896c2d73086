"""`python -m dogbreed.cache`: lists, verifies and deletes feature stores."""

import sys

from dogbreed.cache.callback import main

if __name__ == "__main__":
    sys.exit(main())
