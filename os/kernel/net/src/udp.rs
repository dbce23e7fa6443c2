//! UDP sockets (RFC 768), as far as name resolution needs them.

use crate::wire::*;
use crate::*;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

#[derive(Default)]
pub struct Udp {
    pub local: Option<SocketAddrV4>,
    pub remote: Option<SocketAddrV4>,
    pub received: VecDeque<(SocketAddrV4, Vec<u8>)>,
    /// Bytes in `received`.
    pub held: usize,
    pub closed: bool,
    /// The peer's host said that nobody listens there.
    pub error: Option<Error>,
}

impl Udp {
    pub fn deliver(&mut self, from: SocketAddrV4, data: &[u8]) -> bool {
        if self.remote.is_some_and(|r| r != from) || self.received.len() >= MAX_DATAGRAMS {
            return false;
        }
        self.received.push_back((from, data.to_vec()));
        self.held += data.len();
        true
    }

    pub fn readiness(&self) -> Readiness {
        Readiness {
            readable: !self.received.is_empty() || self.closed || self.error.is_some(),
            writable: true,
            read_closed: self.closed,
            error: self.error.is_some(),
            ..Readiness::default()
        }
    }
}

/// Reads a datagram: its ports and data; `None` for a damaged one.
pub fn parse<'a>(packet: &Packet<'a>) -> Option<(u16, u16, &'a [u8])> {
    let data = packet.payload;
    if data.len() < UDP_HEADER {
        return None;
    }
    let length = usize::from(be16(data, 4));
    if length < UDP_HEADER || length > data.len() {
        return None;
    }
    let data = &data[..length];
    let sum = pseudo_sum(packet.source, packet.target, PROTO_UDP, length);
    if be16(data, 6) != 0 && checksum_finish(checksum_add(sum, data)) != 0 {
        return None;
    }
    Some((be16(data, 0), be16(data, 2), &data[UDP_HEADER..]))
}
