"""What /metrics says: the rooms' counters as Prometheus text; names no bucket, key or owner."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from o3storage._native import compare_digest
from o3storage.http import Request, Response
from o3storage.runtime import Registry
from o3storage.runtime.metrics import CONTENT_TYPE, CounterChild, HistogramChild

from ._health import write_refusal

if TYPE_CHECKING:
    from ._app import Application

GAUGES = {
    "o3_disk_total_bytes": "Size of the disk.",
    "o3_disk_free_bytes": "Free bytes of the disk.",
    "o3_disk_used_bytes": "Bytes of the store's files.",
    "o3_disk_reserve_bytes": "Bytes kept for deletes and compaction.",
    "o3_disk_out_of_service": "1 after a disk fault.",
    "o3_write_enabled": "1 while writes are accepted.",
    "o3_log_volumes": "Log volumes on disk.",
    "o3_bulk_volumes": "Bulk volumes on disk.",
    "o3_live_frame_bytes": "Bytes of live frames.",
    "o3_garbage_bytes": "Bytes that compaction may free.",
    "o3_key_ranges": "Key ranges that are here.",
    "o3_nodes": "Nodes of the cluster.",
    "o3_nodes_up": "Nodes that this one can reach, itself included.",
    "o3_http_connections": "Open connections.",
    "o3_loop_longest_step_seconds": "Longest step of the event loop since the last scrape.",
}
COUNTERS = {
    "o3_batches_total": "Batches written, each with one sync.",
    "o3_batch_bytes_total": "Bytes of all batches.",
    "o3_flushes_total": "Index flushes.",
    "o3_compactions_total": "Volumes compacted.",
    "o3_scrubbed_bytes_total": "Bytes re-read by scrub.",
    "o3_scrub_bad_total": "Bad records found by scrub.",
    "o3_rotted_records_total": "Records found damaged at open.",
    "o3_ranges_cut_by_size_total": "Key ranges that this node cut because they had grown.",
    "o3_peer_sent_bytes_total": "Bytes sent to other nodes.",
    "o3_peer_received_bytes_total": "Bytes received from other nodes.",
    "o3_peer_messages_dropped_total": "Messages of consensus dropped: no link, or too much unsent.",
    "o3_peer_links_lost_total": "Links between members that ended.",
    "o3_peer_links_refused_total": "Links that one side refused.",
    "o3_peer_malformed_total": "Links closed because the peer broke the protocol.",
    "o3_peer_duplicates_total": "Times that two processes used one node's identity.",
    "o3_http_requests_total": "Requests with a good head.",
    "o3_http_refused_total": "Heads refused.",
    "o3_http_aborted_total": "Responses cut in their body.",
    "o3_housekeeping_steps_total": "Chores done.",
    "o3_loop_slow_steps_total": "Steps of the event loop over 20 ms.",
}


class Metrics:
    """The registry, filled from the rooms' own counters when somebody asks."""

    def __init__(self, app: Application, registry: Registry) -> None:
        self._app = app
        self.registry = registry
        self._gauges = {name: registry.gauge(name, text) for name, text in GAUGES.items()}
        self._counters = {name: registry.counter(name, text) for name, text in COUNTERS.items()}

        self._requests = registry.counter(
            "o3_s3_requests_total", "Answers by operation and status.", ("operation", "status")
        )
        self._latencies = registry.histogram(
            "o3_s3_request_seconds",
            "From the head of a request to the head of its answer, syncs included.",
            ("operation",),
        )
        self._seen: dict[tuple[str, int], tuple[CounterChild, HistogramChild]] = {}

    def count_request(self, operation: str, status: int, took_s: float) -> None:
        """Called by the S3 layer for each answer: below a microsecond."""
        children = self._seen.get((operation, status))
        if children is None:
            name = operation or "none"
            children = self._requests.labels(name, str(status)), self._latencies.labels(name)
            self._seen[operation, status] = children
        counter, latencies = children
        counter.value += 1
        latencies.counts[bisect_left(latencies.bounds, took_s)] += 1
        latencies.sum += took_s

    def answer(self, request: Request) -> Response:
        """The scrape; 401 without the bearer token where one is asked for."""
        token = self._app.config.metrics_token
        if token is not None:
            scheme, _, sent = (request.headers.get("authorization") or "").partition(" ")
            right = compare_digest(sent.strip().encode("latin-1"), token.encode())
            if not right or scheme.lower() != "bearer":
                return Response(
                    401, [("WWW-Authenticate", "Bearer")], b"a bearer token is needed\n"
                )
        self._update()
        return Response(200, [("Content-Type", CONTENT_TYPE)], self.registry.expose().encode())

    def _update(self) -> None:
        app = self._app
        space, stats, front = app.store.space(), app.store.stats(), app.http.stats
        peers = app.membership.peers.stats
        values = {
            "o3_disk_total_bytes": space.total_bytes,
            "o3_disk_free_bytes": space.free_bytes,
            "o3_disk_used_bytes": space.used_bytes,
            "o3_disk_reserve_bytes": space.reserve_bytes,
            "o3_disk_out_of_service": bool(stats.out_of_service),
            "o3_write_enabled": write_refusal(app) is None,
            "o3_log_volumes": stats.log_volumes,
            "o3_bulk_volumes": stats.bulk_volumes,
            "o3_live_frame_bytes": stats.live_frame_bytes,
            "o3_garbage_bytes": stats.garbage_bytes,
            "o3_key_ranges": len(app.node.key_ranges()),
            "o3_nodes": len(app.membership.live()),
            "o3_nodes_up": sum(app.membership.up(r.node) for r in app.membership.live()),
            "o3_http_connections": app.http.connections,
            "o3_loop_longest_step_seconds": app.meter.take_longest_s(),
        }
        for name, value in values.items():
            self._gauges[name].set(float(value))
        totals = {
            "o3_batches_total": stats.batches,
            "o3_batch_bytes_total": stats.batch_bytes,
            "o3_flushes_total": stats.flushes,
            "o3_compactions_total": stats.compactions,
            "o3_scrubbed_bytes_total": stats.scrubbed_bytes,
            "o3_scrub_bad_total": stats.scrub_bad,
            "o3_rotted_records_total": stats.rotted_records,
            "o3_ranges_cut_by_size_total": app.node.ranges.sizes.cuts,
            "o3_peer_sent_bytes_total": peers.bytes_sent,
            "o3_peer_received_bytes_total": peers.bytes_received,
            "o3_peer_messages_dropped_total": peers.messages_dropped,
            "o3_peer_links_lost_total": peers.links_lost,
            "o3_peer_links_refused_total": peers.links_refused,
            "o3_peer_malformed_total": peers.malformed,
            "o3_peer_duplicates_total": peers.duplicates,
            "o3_http_requests_total": front.requests,
            "o3_http_refused_total": front.refused,
            "o3_http_aborted_total": front.aborted,
            "o3_housekeeping_steps_total": app.housekeeping.steps,
            "o3_loop_slow_steps_total": app.meter.slow_steps,
        }
        for name, total in totals.items():
            child = self._counters[name].labels()
            child.inc(total - child.value)
