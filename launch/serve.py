"""Start a server of vLLM that draws for the runs of a configuration.

python launch/serve.py --config FILE --python VENV/bin/python [--port P] [--gpus N] [key=value ...]

VENV is an environment with vLLM; the trainer's own has none. The command starts the server with the
flags that the configuration needs, waits until it answers, prints the keys that a run needs to use
it, and stays. Ctrl-C ends the server. Its log is runs/serve/<port>.log.
"""

import signal
import sys
from pathlib import Path

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.config.arguments import CONFIG, add_keys, command_line, find_config


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--config", required=True, type=find_config, help=CONFIG)
    parser.add_argument("--python", default=sys.executable, help="python of an environment of vLLM")
    parser.add_argument("--host", default="127.0.0.1", help="address at which the trainer finds it")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that share the model's layers")
    parser.add_argument(
        "--memory", type=float, metavar="SHARE", help="share of each GPU's memory; default: vLLM's"
    )
    add_keys(parser, "as in training")
    arguments = parser.parse_intermixed_args()

    from trainers.commands.main import attempt
    from trainers.commands.serve import Arguments, serve

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    return attempt(
        lambda: serve(Arguments(**vars(arguments))), interrupted="interrupted; the server has ended"
    )


if __name__ == "__main__":
    sys.exit(main())
