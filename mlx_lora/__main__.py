"""`python -m mlx_lora` and the console script: one place that catches what a user can mend."""

import os
import sys


def main() -> None:
    """Run the command line; a user's error is printed as place, fact and remedy, exit code 1."""
    try:
        from mlx_lora.cli import app
        from mlx_lora.console import prepare_streams, print_error
        from mlx_lora.errors import MlxLoraError
    except KeyboardInterrupt:
        sys.exit(130)
    if sys.stdout is sys.__stdout__:  # not where somebody has put another there
        prepare_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a reader that has gone is met here, not while Python ends
    except MlxLoraError as error:
        if os.environ.get("MLX_LORA_DEBUG") == "1":
            raise
        print_error(error)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has gone: `mlx-lora … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
