"""The command line's words: every command, option, default and example.

Parsing only: nothing here opens a file or a socket.
"""

from __future__ import annotations

import argparse
from typing import NoReturn

DEFAULT_IP = "127.0.0.1"
DEFAULT_PORT = 8080
DEFAULT_DATA_DIR = "./o3data"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nTry: {self.prog} --help\n")


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return port


def _above_zero(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return count


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        default=DEFAULT_DATA_DIR,
        metavar="DIR",
        help=f"where the store keeps everything (default {DEFAULT_DATA_DIR})",
    )


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    _add_data_dir(parser)
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="the running store (default: the one that serves --data-dir)",
    )
    parser.add_argument(
        "--region",
        metavar="R",
        help="what --endpoint expects requests to be signed for (default: AWS_REGION, else "
        "us-east-1); the store of --data-dir says it itself",
    )
    parser.add_argument(
        "--ca-file",
        metavar="PEM",
        help="certificate to trust for an https endpoint (default: the system's authorities)",
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ip", default=DEFAULT_IP, metavar="A", help=f"address to listen on (default {DEFAULT_IP})"
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=DEFAULT_PORT,
        metavar="P",
        help=f"port to listen on, 0 for any free one (default {DEFAULT_PORT})",
    )
    _add_data_dir(parser)
    parser.add_argument(
        "--peers",
        metavar="B,C",
        help="nodes of the cluster to join: IP, IP:PORT or DNS name, by commas; needs its secret",
    )
    parser.add_argument(
        "--join",
        metavar="TOKEN",
        help="join with the token that another node printed (`o3storage node token`)",
    )
    parser.add_argument(
        "--peer-port",
        type=_port,
        metavar="P",
        help="port for other nodes (default: the next after --port)",
    )
    parser.add_argument(
        "--peer-ip", metavar="A", help="where other nodes reach this one (default: --ip)"
    )
    parser.add_argument(
        "--host-label",
        metavar="NAME",
        help="the machine, when it runs several nodes: no two voters of a range on one",
    )
    parser.add_argument(
        "--domain",
        metavar="NAME",
        help="also serve BUCKET.NAME (virtual-host style), for example s3.example.org",
    )
    parser.add_argument("--region", default="us-east-1", metavar="R", help="default us-east-1")
    parser.add_argument("--tls-cert", metavar="PEM", help="certificate chain; serves https")
    parser.add_argument("--tls-key", metavar="PEM", help="private key of --tls-cert")
    parser.add_argument(
        "--anonymous",
        action="store_true",
        help="let unsigned requests act as the root owner (only on a loopback address)",
    )
    parser.add_argument(
        "--anonymous-from-anywhere",
        action="store_true",
        help="with --anonymous: also on an address that others can reach",
    )
    parser.add_argument(
        "--admin-listen",
        metavar="IP:PORT",
        help="serve /metrics and /-/admin here and not on the S3 address",
    )
    parser.add_argument(
        "--metrics-token-file",
        metavar="FILE",
        help="ask for this bearer token on /metrics",
    )
    parser.add_argument(
        "--log-level", choices=["error", "warning", "info", "debug"], default="info"
    )


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. `serve` is also what runs when no command is named."""
    parser = _Parser(
        prog="o3storage",
        description="A durable, verified, sealed object store driven over the S3 API.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  o3storage                                     a store on 127.0.0.1:8080, data in ./o3data
  o3storage --ip 192.168.1.10 --port 9000 --data-dir /srv/o3
  o3storage --ip 192.168.1.11 --port 9000 --peers 192.168.1.10     a second node
  eval "$(o3storage env)"                       settings for every AWS tool
  o3storage key create --owner alice            a new access key
  o3storage verify --data-dir /srv/o3           check every stored byte of a stopped store
  o3storage bench put --size 4K --connections 64

`o3storage COMMAND --help` says more of each.""",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="run the store (also what runs without a command)",
        description="Run the store until SIGTERM or Ctrl-C; both finish what is in flight.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""environment:
  O3_ROOT_USER, O3_ROOT_PASSWORD     a second root key, in memory only (or ..._FILE with a path)
  O3_MASTER_KEY_FILE                 the master key, when it is not kept in the data directory
  O3_CLUSTER_SECRET                  who knows it may join (or O3_CLUSTER_SECRET_FILE with a path)

examples:
  o3storage serve --port 9000
  o3storage --ip 192.168.1.11 --port 8080 --peers 192.168.1.10,192.168.1.12
  o3storage serve --tls-cert fullchain.pem --tls-key key.pem --ip 0.0.0.0 --port 443
  o3storage serve --anonymous""",
    )
    _add_serve(serve)

    status = commands.add_parser(
        "status",
        help="what the running store says of itself",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  o3storage status --data-dir /srv/o3
  o3storage status --endpoint https://192.168.1.10:8080 --ca-file ca.pem --json""",
    )
    _add_endpoint(status)
    status.add_argument("--json", action="store_true", help="as JSON")

    env = commands.add_parser(
        "env",
        help="print settings for AWS tools",
        description='Prints export lines for a shell: eval "$(o3storage env)"',
    )
    _add_data_dir(env)

    node = commands.add_parser(
        "node",
        help="the nodes of the cluster: list, remove, drain, replace",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""NODE is an address of `node list`, or the beginning of its id.

examples:
  o3storage node list
  o3storage node drain 192.168.1.12              before work on that machine
  o3storage node replace 192.168.1.12            it is dead: the next node to join takes its place
  o3storage node token                           what another machine needs to join""",
    )
    actions = node.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="all nodes and how they are")
    listing.add_argument("--json", action="store_true", help="as JSON")
    _add_endpoint(listing)
    for name, text in {
        "remove": "it leaves the cluster for good, once others hold what it held",
        "replace": "as remove, but it keeps its place until a new node has it",
        "drain": "it keeps no vote in any range, but stays a node",
        "stay": "take back drain, or remove before it is done",
    }.items():
        action = actions.add_parser(name, help=text)
        action.add_argument("node", metavar="NODE", help="address, or beginning of the id")
        if name in {"remove", "drain"}:
            action.add_argument(
                "--shrink",
                action="store_true",
                help="also when fewer nodes remain than there are copies of each object",
            )
        _add_endpoint(action)
    token = actions.add_parser("token", help="print what --join takes on another machine")
    _add_data_dir(token)

    ranges = commands.add_parser(
        "range",
        help="the key ranges: list, split, move",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""NODE is an address of `node list`, or the beginning of its id.

examples:
  o3storage range list
  o3storage range split photos 2026/07/          keys from 2026/07/ on get a range of their own
  o3storage range move 2 192.168.1.10 192.168.1.14
  o3storage range stay 2                         take that back before it is done""",
    )
    actions = ranges.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="where each begins and ends, and who holds it")
    listing.add_argument("--json", action="store_true", help="as JSON")
    _add_endpoint(listing)
    split = actions.add_parser("split", help="cut the range that holds a key, at that key")
    split.add_argument("bucket", metavar="BUCKET")
    split.add_argument("key", metavar="KEY", help="the first key of the new range")
    _add_endpoint(split)
    move = actions.add_parser("move", help="bring a replica of a range from one node to another")
    move.add_argument("range", metavar="RANGE", type=int, help="its number in `range list`")
    move.add_argument("source", metavar="FROM", help="the node that holds it")
    move.add_argument("target", metavar="TO", help="the node that is to hold it")
    _add_endpoint(move)
    stay = actions.add_parser("stay", help="take back a move that is not done")
    stay.add_argument("range", metavar="RANGE", type=int, help="its number in `range list`")
    _add_endpoint(stay)

    key = commands.add_parser(
        "key",
        help="make, list and remove access keys",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  o3storage key create --owner alice
  o3storage key list --owner alice
  o3storage key remove KEYID
  o3storage key rotate-root                      the one before stops working at once""",
    )
    actions = key.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="a new key; its secret is shown once")
    create.add_argument("--owner", required=True, help="whose buckets the key opens")
    _add_endpoint(create)
    listing = actions.add_parser("list", help="all keys, without secrets")
    listing.add_argument("--owner", help="only this owner's")
    _add_endpoint(listing)
    rotate = actions.add_parser("rotate-root", help="a new root key, on all nodes")
    _add_endpoint(rotate)
    master = actions.add_parser(
        "rotate-master", help="exchange the master key of a stopped store; data stays as it is"
    )
    master.add_argument(
        "--to",
        metavar="FILE",
        help="where the new one goes, if it is not kept in the data directory",
    )
    _add_data_dir(master)
    remove = actions.add_parser("remove", help="a key stops working at once")
    remove.add_argument("key_id")
    _add_endpoint(remove)

    verify = commands.add_parser(
        "verify",
        help="check every stored byte of a stopped store",
        description="Reads everything in the data directory and checks it. Exit 0 when all is "
        "good, 1 when something is not. Nothing is changed without --repair.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  o3storage verify --data-dir /srv/o3
  o3storage verify --data-dir /srv/o3 --repair
  o3storage verify --data-dir /srv/o3 --return-disk     its fault was found and mended""",
    )
    _add_data_dir(verify)
    verify.add_argument(
        "--repair", action="store_true", help="set aside what is bad, keeping what is good"
    )
    verify.add_argument(
        "--return-disk",
        action="store_true",
        help="after a full check, let a disk that was taken out of service serve again",
    )
    verify.add_argument("--json", action="store_true", help="the report as JSON")

    inspect = commands.add_parser(
        "inspect",
        help="show a volume, a record or an object of a stopped store",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  o3storage inspect                              the volumes of ./o3data
  o3storage inspect volume 00000003              its records
  o3storage inspect record 00000003 8192         one record in full
  o3storage inspect object s3://bucket/key       its versions and where their frames lie""",
    )
    inspect.add_argument(
        "what", nargs="?", choices=["volumes", "volume", "record", "object"], default="volumes"
    )
    inspect.add_argument("names", nargs="*", help="volume | volume offset | s3://bucket/key")
    _add_data_dir(inspect)

    bench = commands.add_parser(
        "bench",
        help="measure any S3 endpoint",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  o3storage bench put --size 4K --connections 64
  o3storage bench get --size 64M --connections 4 --seconds 30 --json

The same command measures a peer:
  o3storage bench mixed --endpoint http://127.0.0.1:9000 --key-id K --secret-file F
  o3storage bench get --endpoint https://s3.example.org --region eu-west-1""",
    )
    bench.add_argument(
        "operation", nargs="?", choices=["put", "get", "head", "list", "mixed"], default="mixed"
    )
    _add_endpoint(bench)
    bench.add_argument("--bucket", default="o3-bench", help="made if missing (default o3-bench)")
    bench.add_argument("--size", default="4K", help="object size (default 4K)")
    bench.add_argument("--connections", type=int, default=64, help="default 64")
    bench.add_argument("--seconds", type=float, default=10.0, help="default 10")
    bench.add_argument("--objects", type=int, default=1000, help="keys used (default 1000)")
    bench.add_argument("--key-id", help="access key id (default: the store's root key)")
    bench.add_argument("--secret-file", metavar="FILE", help="file with the secret of --key-id")
    bench.add_argument("--json", action="store_true", help="the result as JSON")

    simulate = commands.add_parser(
        "simulate",
        help="run nodes on simulated, failing machines and judge them",
        description="Each seed is half a minute of virtual time: clients work through the S3 "
        "layer while power cuts, failing syncs, full and stuck disks, with several nodes also "
        "pauses and partitions, strike. Then the "
        "history must be linearizable and every acknowledged byte readable. Exit 1 if not.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  o3storage simulate --seeds 1000
  o3storage simulate --nodes 3 --seeds 100       a cluster of three
  o3storage simulate --nodes 3 --seeds 10000 --workers 2 --record night.jsonl
  o3storage simulate --seed 42 --trace           what happened in one run""",
    )
    simulate.add_argument("--seeds", type=_above_zero, metavar="N", help="how many (default 100)")
    simulate.add_argument("--seed", type=int, metavar="S", help="this one, or the first of N")
    simulate.add_argument("--nodes", type=int, choices=(1, 3, 5), default=1, help="(default 1)")
    simulate.add_argument("--trace", action="store_true", help="print all that happened (one seed)")
    simulate.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes side by side (default 1)"
    )
    simulate.add_argument(
        "--record", metavar="FILE", help="keep each seed's result; what it holds is not run again"
    )

    commands.add_parser("version", help="print the version")
    return parser


_OTHER_WORDS = {
    "start": "`o3storage serve` runs the store; a service manager keeps it in the background",
    "stop": "Ctrl-C, or SIGTERM to the process of `o3storage serve`, stops the store",
    "gc": "space is freed in the background, there is nothing to call; see `o3storage status`",
}
"""What other stores call it, and what to do here."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse `sys.argv[1:]`; without a command, `serve` is meant."""
    parser = build_parser()
    first = arguments[0] if arguments else ""
    if first in _OTHER_WORDS:
        parser.error(f"there is no command {first}: {_OTHER_WORDS[first]}")
    if first == "--version":
        arguments = ["version"]
    elif not first or (first.startswith("-") and first not in {"-h", "--help"}):
        arguments = ["serve", *arguments]
    return parser.parse_args(arguments)
