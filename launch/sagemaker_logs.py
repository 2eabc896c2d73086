"""`python launch/sagemaker_logs.py NAME`: the log of an endpoint or a job, and an endpoint's metrics."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from dogbreed.core.cli import guard, parser
from dogbreed.core.errors import DogbreedError

_DESCRIPTION = "Show the last lines of the log of an endpoint or a job, and an endpoint's metrics, from CloudWatch."
_EPILOG = """\
examples:
  python launch/sagemaker_logs.py dogbreed-vgg16
  python launch/sagemaker_logs.py dogbreed-train-20260501-103000 --minutes 600 --lines 50

python launch/policies.py logs shows what is needed for it.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    frame = parser("python launch/sagemaker_logs.py", _DESCRIPTION, _EPILOG)
    add = frame.add_argument
    add("name", metavar="NAME", help="of an endpoint, a training job, a trial, or a batch")
    add("--minutes", type=int, default=60, metavar="N", help="how far back (default 60)")
    add("--lines", type=int, default=100, metavar="N", help="at most so many lines (default 100)")
    add("--region", help="where it is (default: the environment's)")
    add("--profile", help="named profile of the AWS configuration (default: the environment's)")
    arguments = frame.parse_args(argv)

    def show() -> None:
        for name in ("minutes", "lines"):
            if not 1 <= getattr(arguments, name) <= 100_000:
                raise DogbreedError(f"--{name} {getattr(arguments, name)} is out of range; it is from 1 to 100,000.")
        from dogbreed.config.compose import compose
        from launch.aws.account import Account
        from launch.serving import logs

        config = compose()
        config["sagemaker"] |= {"region": arguments.region, "profile": arguments.profile}
        for line in logs.show(Account(config), arguments.name, arguments.minutes, arguments.lines):
            print(line, flush=True)

    return guard(show)


if __name__ == "__main__":
    sys.exit(main())
