"""One running node: every room opened in order, served, and closed in the opposite order."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from functools import partial

from o3storage import _native
from o3storage.catalog import Counts
from o3storage.cluster import (
    Clustered,
    ClusterError,
    Membership,
    Node,
    TlsNetwork,
    Unavailable,
    show_address,
)
from o3storage.crypto import KeyFault, MasterKey
from o3storage.http import Request, Response, Server, ServerTls, TlsConfigError
from o3storage.runtime import (
    DiskFull,
    JobPool,
    Logger,
    NativeJobs,
    Registry,
    StallMeter,
    SystemClock,
    SystemEntropy,
    log,
)
from o3storage.s3 import Service, ServiceConfig
from o3storage.storage import Store, StoreError

from . import _health, _own_paths, _peering, _root_key, _running, _screen, _waiting
from ._addresses import check_address, listen_error, reachable
from ._config import RootKey, ServerConfig
from ._credentials import ROOT_OWNER, Credentials
from ._data_dir import DataDir, open_data_dir
from ._descriptors import OPERATOR_LIMITS, client_limits
from ._errors import StartError
from ._fault_log import tell_of_faults
from ._housekeeping import Housekeeping
from ._metrics import Metrics
from ._wiring import open_member

DRAIN_TIMEOUT_S = 30.0
"""How long requests in flight may take after SIGTERM before they are cut; systemd's default kill
comes after 90 s."""

STOPPING = f"stopping: what is in flight may take {DRAIN_TIMEOUT_S:.0f} s; Ctrl-C once more cuts it"

GC_THRESHOLDS = (10_000, 20, 1_000_000)
"""Of the collector's generations. A request makes about fifty containers that live until its sync
is done; with the interpreter's own 700 every fifteenth request starts a collection, which finds
only what is still in use: circles are not made on the path of a request. A loop that is idle now
and then collects before that (`StallMeter.collects`), the oldest generation, too: with 20 for that
one the interpreter would look at it in the middle of requests."""

ANNOUNCE_AGAIN_S = 30.0
"""How often a disk that was full is tried again for the file that tells of a running store."""
FOLLOW_S = 0.2
"""Between looks for a root key that has not come yet."""

_log = Logger("server")


class Application:
    """The node behind one data directory. `start`, then `serve_until_stopped` or `stop`."""

    def __init__(
        self, config: ServerConfig, meter: StallMeter, say: Callable[[str], None] | None = None
    ) -> None:
        """`say`: tells what the start waits for."""
        self.config = config
        self.meter = meter
        self._say = say or (lambda text: _log.info("start.waiting", reason=text))
        self.version: str = _native.__version__
        self.clock = SystemClock()
        self.entropy = SystemEntropy()
        self.started_boot_s = self.clock.boot_s()
        self.pool = JobPool()
        self.stopping = False
        self.object_count = _health.ObjectCount(lambda: _health.count_objects(self))
        self.root_key_ids: list[str] = []
        self.data_dir: DataDir
        self.store: Store
        self.node: Node
        self.network: TlsNetwork
        self.clustered: Clustered
        self.membership: Membership
        self.credentials: Credentials
        self.service: Service
        self.http: Server
        self.tls: ServerTls | None = None
        self.admin_http: Server | None = None
        self._front: Server | None = None
        """Answers while the node waits for others."""
        self._announcing: asyncio.TimerHandle | None = None
        self.housekeeping: Housekeeping
        self.metrics: Metrics
        self._secret_of_first_start: RootKey | None = None

    async def start(self) -> list[str]:
        """Open everything and listen; returns the first screen. Raises StartError, with all that
        was opened closed again."""
        config = self.config
        os.umask(0o077)
        check_address(config.ip, config.port)
        if config.admin_listen:
            check_address(*config.admin_listen)
        # What a first start shows once it cannot show again: all that may fail comes before.
        self.tls = _tls_of(config)
        await self.pool.start()
        log.start(self.pool)
        try:
            master = MasterKey.from_environment(os.environ)
        except KeyFault as error:
            raise StartError(str(error)) from None
        self.data_dir = await open_data_dir(
            config.data_dir, self.pool, self.entropy, master, create=True
        )
        try:
            self._front = await _waiting.open_front(config, self.clock, self.tls)
        except BaseException:
            self.data_dir.release()
            raise
        try:
            await self._open_node()
            try:
                return await self._begin()
            except BaseException:
                await self._close_rooms()
                raise
        finally:
            await self._leave_front()

    async def _leave_front(self) -> None:
        front, self._front = self._front, None
        if front is not None:
            await front.drain(0.0)

    async def _begin(self) -> list[str]:
        """Over the open node: what serves requests. Raises StartError."""
        config = self.config
        tell_of_faults(self.store)
        new_store = self.data_dir.keys.created
        root_keys = self._with_environment(await self._stored_root_key())
        self.membership.on_shared = self._shared_changed
        self.root_key_ids = [key.key_id for key in root_keys]
        self.credentials = Credentials(self.node, root_keys)
        self.metrics = Metrics(self, Registry())
        self.service = Service(
            self.node,
            credentials=self.credentials,
            clock=self.clock,
            entropy=self.entropy,
            observe=self.metrics.count_request,
            config=ServiceConfig(
                region=config.region,
                domain=config.domain,
                root_owner=ROOT_OWNER,
                anonymous=config.anonymous,
                listened=(config.ip,),
            ),
        )
        self.housekeeping = Housekeeping(self.node, self.clock, mine=self.membership.leads)
        self.http = Server(
            self._handle,
            limits=client_limits(),
            error_response=self.service.error_response,
            report=self._report,
            clock=self.clock,
        )
        await self._leave_front()
        await self._listen()
        self.housekeeping.start()
        # What was made so far lives as long as the process; the collector need not look at it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self.meter.collects = True
        return await self._first_screen(new_store)

    async def _open_node(self) -> None:
        """The store, the network and the node among others. Raises StartError, with all of it
        closed again."""
        config = self.config
        network: TlsNetwork | None = None
        try:
            options = _peering.cluster_options(config, self.data_dir.disk, self.entropy, self._say)
            # Not before the root key is in range 0, where those who join look for it.
            options.joinable = False
            network = TlsNetwork(self.data_dir.keys.node, self.pool)
            self.store, self.clustered = await open_member(
                self.data_dir.disk,
                keys=self.data_dir.keys.node,
                jobs=NativeJobs(self.pool),
                clock=self.clock,
                entropy=self.entropy,
                network=network,
                cluster=options,
            )
        except BaseException as error:
            if network is not None:
                await network.close()
            self.data_dir.release()
            if isinstance(error, DiskFull) or isinstance(error.__cause__, DiskFull):
                raise StartError(
                    f"{config.data_dir}: the disk has no space left for a start; nothing is lost: "
                    "free space on that disk, or make it larger, and start again"
                ) from None
            if isinstance(error, (StoreError, ClusterError)):
                raise StartError(f"{config.data_dir}: {error}") from None
            if isinstance(error, OSError):
                raise StartError(
                    f"cannot read or write {config.data_dir}: {error.strerror or error}"
                ) from None
            if isinstance(error, ValueError):  # also SealError: rows or entries that nobody wrote
                raise StartError(
                    f"{config.data_dir} holds what this program did not write ({error}); "
                    "o3storage verify says where"
                ) from None
            raise
        self.network = network
        self.node, self.membership = self.clustered.node, self.clustered.membership
        self.membership.facts = self._own_facts

    async def _stored_root_key(self) -> RootKey:
        """The root key of the cluster: what range 0 says, or for a node alone what its file says,
        which is made at the first start. Both agree on return."""
        membership, directory = self.membership, self.config.data_dir
        mine = _root_key.load(directory)
        if len(membership.live()) > 1:
            while mine is None and _root_key.ROOT_KEY not in membership.shared:
                await asyncio.sleep(FOLLOW_S)
                await membership.follow()
            shared = membership.shared.get(_root_key.ROOT_KEY)
            if shared is not None and (mine is None or _root_key.to_shared(mine) != shared):
                mine = _root_key.from_shared(shared)
                _root_key.save(directory, mine)
            assert mine is not None
        else:
            if mine is None:
                mine = self._secret_of_first_start = _root_key.create(directory, self.entropy)
            if membership.shared.get(_root_key.ROOT_KEY) != _root_key.to_shared(mine):
                try:
                    await membership.share(_root_key.ROOT_KEY, _root_key.to_shared(mine))
                except ClusterError as error:
                    # It is told to the others when this node starts with a disk that takes it.
                    _log.warning("root_key.not_shared", reason=str(error))
        membership.options.joinable = _root_key.ROOT_KEY in membership.shared
        return mine

    def _with_environment(self, key: RootKey) -> list[RootKey]:
        extra = self.config.environment_root
        return [key] if extra is None else [key, extra]

    def _shared_changed(self, name: str) -> None:
        """The root key was changed, here or on another node: the one before is worth nothing from
        now on, whether or not the file can be written."""
        if name == _root_key.ROOT_KEY:
            key = _root_key.from_shared(self.membership.shared[name])
            keys = self._with_environment(key)
            self.root_key_ids = [found.key_id for found in keys]
            self.credentials.set_root(keys)
            _log.info("root_key.changed", key_id=key.key_id)
            try:
                _root_key.save(self.config.data_dir, key)
            except OSError as error:
                _log.error(
                    "root_key.not_kept",
                    error=error.strerror or str(error),
                    hint="root-credentials holds the key before: write the one that o3storage key "
                    "rotate-root printed into it before the next start",
                )

    def _own_facts(self) -> dict[str, object]:
        """What `status` on other nodes shows of this one."""
        stats, space = self.store.stats(), self.store.space()
        return {
            "release": self.version,
            "uptime_s": round(self.clock.boot_s() - self.started_boot_s, 1),
            "used_bytes": space.used_bytes,
            "free_bytes": space.free_bytes,
            "full": space.full,
            "out_of_service": stats.out_of_service or "",
            "scrub_bad": stats.scrub_bad,
        }

    async def _listen(self) -> None:
        config = self.config
        asked = (config.ip, config.port)
        try:
            host, port = await self.http.listen(config.ip, config.port, tls=self.tls)
            scheme = "https" if self.tls else "http"
            self.url = f"{scheme}://{reachable(host)}:{port}"
            self.admin_url = self.url
            others = self.membership.options.reached_at or (host,)
            name = f"[{others[0]}]" if ":" in others[0] else others[0]
            self.membership.options.url = f"{scheme}://{name}:{port}"
            if config.admin_listen:
                asked = config.admin_listen
                self.admin_http = Server(
                    partial(_own_paths.answer_admin, self),
                    limits=OPERATOR_LIMITS,
                    report=self._report,
                    clock=self.clock,
                )
                host, port = await self.admin_http.listen(*asked)
                self.admin_url = f"http://{reachable(host)}:{port}"
        except OSError as error:
            raise StartError(listen_error(*asked, error)) from None
        membership = self.membership
        peers = ",".join(show_address(a) for a in membership.own_addresses() if membership.bound)
        running = _running.Running(os.getpid(), self.url, self.admin_url, config.region, peers)
        self._announce(running)

    def _announce(self, running: _running.Running, *, tried: bool = False) -> None:
        """Write the file by which commands find this store. A full disk is no reason not to serve
        what is on it: it is written when there is room."""
        try:
            _running.write(self.config.data_dir, running)
        except OSError as error:
            if not tried:
                _log.error(
                    "running_file.not_written",
                    error=error,
                    effect="commands with --data-dir do not find this store until it is",
                )
            self._announcing = asyncio.get_running_loop().call_later(
                ANNOUNCE_AGAIN_S, partial(self._announce, running, tried=True)
            )

    async def _counts(self) -> Counts | None:
        """None while there is no majority to ask. Raises StartError."""
        if self.membership.why_no_writes() is not None:
            return None
        try:
            return await _health.total_counts(self.node)
        except Unavailable:
            if len(self.membership.live()) > 1:
                return None
            # The row lies in a damaged block of the index: mend it first.
            await self.store.repair_index()
        try:
            return await _health.total_counts(self.node)
        except Unavailable as error:
            raise StartError(f"{self.config.data_dir}: {error}") from None

    async def _first_screen(self, new_store: bool) -> list[str]:
        config = self.config
        space = self.store.space()
        sums = await self._counts()
        others = len(self.membership.live()) - 1
        sizes = (
            f"{_screen.size_text(space.used_bytes)} used, "
            f"{_screen.size_text(space.free_bytes)} free"
        )
        if others:
            sizes += f"; one of {others + 1} nodes"
        if sums is None:
            state = f"opened: {sizes}; WAITING for a majority of the nodes"
        elif new_store:
            state = f"new node, one of {others + 1}" if others else "new store"
        else:
            objects = f"{sums.objects:,} object{'' if sums.objects == 1 else 's'}"
            state = f"opened: {objects}, {sizes}"
        first = self._secret_of_first_start if config.show_secrets else None
        keys = self.data_dir.keys
        screen = _screen.FirstScreen(
            version=self.version,
            url=self.url,
            health_url=f"{self.url}/health",
            region=config.region,
            data_dir=config.data_dir,
            state=state,
            command=config.command,
            default_data_dir=config.default_data_dir,
            master_key=str(config.data_dir / "master.key")
            if keys.master_in_data_dir
            else "your master key",
            credentials_file=config.data_dir / _root_key.FILE_NAME,
            key_id=first.key_id if first else None,
            secret=first.secret if first else None,
            token=self.membership.token() if config.show_secrets and not others else None,
            warning=config.warning,
        )
        self.screen = screen
        return screen.lines()

    # --- requests -------------------------------------------------------------------------------

    async def _handle(self, request: Request) -> Response:
        path = request.path
        if path[:2] == b"/h" or path[:2] == b"/m" or path[:2] == b"/-" or path == b"/":
            response = await _own_paths.answer(self, request, path.decode("latin-1"))
            if response is not None:
                return response
        return await self.service.handle(request)

    def _report(self, error: BaseException, request: Request | None) -> None:
        _log.error("request.failed", error=error, request=repr(request))

    # --- end ------------------------------------------------------------------------------------

    def reload_certificate(self) -> None:
        """SIGHUP: a bad certificate keeps the old one and says so."""
        if self.tls is None:
            _log.info("certificate.none", hint="no --tls-cert was given; nothing to reload")
            return
        try:
            self.tls.reload()
        except TlsConfigError as error:
            _log.error("certificate.kept", error=str(error))
        else:
            _log.info("certificate.reloaded", file=self.tls.certificate_path)

    async def stop(self) -> None:
        """Finish what is in flight, then close every room. Loses nothing that was answered."""
        self.stopping = True
        if self._announcing is not None:
            self._announcing.cancel()
        if self.http.busy:
            self._say(STOPPING)
        await self.http.drain(DRAIN_TIMEOUT_S)
        if self.admin_http is not None:
            await self.admin_http.drain(1.0)
        await self.housekeeping.stop()
        await self._close_rooms()
        _running.remove(self.config.data_dir)

    def hurry(self) -> None:
        """Told to stop once more: what is in flight is cut."""
        for server in (getattr(self, "http", None), self.admin_http):
            if server is not None:
                server.cut()

    async def _close_rooms(self) -> None:
        """Node, network, store, lock: after a start that failed too, whatever it came to."""
        for server in (getattr(self, "http", None), self.admin_http):
            if server is not None:
                await server.drain(0.0)  # (nothing is in flight: `stop` waited for it)
        await self.clustered.close()
        await self.network.close()
        await self.store.close()
        self.data_dir.release()


def _tls_of(config: ServerConfig) -> ServerTls | None:
    """What serves https, where that is asked for. Raises StartError."""
    if not (config.tls_cert and config.tls_key):
        return None
    try:
        return ServerTls(str(config.tls_cert), str(config.tls_key))
    except TlsConfigError as error:
        raise StartError(str(error)) from None
