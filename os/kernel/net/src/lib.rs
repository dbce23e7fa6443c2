//! The TCP/IP stack, without I/O: frames come in by [`Stack::receive_frame`], go out by
//! [`Stack::transmit`], and time is what the caller says it is, in microseconds of a clock that
//! never goes back.
//!
//! The caller's loop is: hand every received frame to `receive_frame`; call `poll` whenever
//! [`Stack::next_deadline`] has passed; call `transmit` after either and after any socket call
//! until it returns 0; and look at the sockets that [`Stack::take_event`] names, since their
//! readiness may have changed. Nothing here blocks, sleeps, or knows a device or a clock.
//!
//! Sockets are named by [`SocketId`], which is never used twice while one holder could still
//! have the old one (a generation is part of it). A closed id answers [`Error::EINVAL`].
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod buffer;
mod dhcp;
mod egress;
mod recovery;
mod stack;
mod tcp;
#[cfg(test)]
#[path = "../../../tests/net/tests.rs"]
mod tests;
mod udp;
mod wire;

pub use core::net::{Ipv4Addr, SocketAddrV4};
pub use errno::Errno as Error;
pub use stack::Stack;

/// Connections in any state, the closing ones too: the product's stated limit.
pub const MAX_CONNECTIONS: usize = 4096;
/// Bytes held for data over all sockets: an eighth of the machine's 512 MB.
pub const MAX_SOCKET_MEMORY: usize = 64 << 20;
/// Unsent and unacknowledged bytes of one connection: 100 ms at 20 MB/s.
pub const SEND_BUFFER: usize = 512 << 10;
/// Received and unread bytes of one connection; the largest window ever offered.
pub const RECEIVE_BUFFER: usize = 512 << 10;
/// Connections waiting to be accepted, for one listener.
pub const MAX_BACKLOG: usize = 512;
/// Handshakes under way, without buffers yet: less than 3 MB together. Each new one past it
/// pushes out the oldest, so that under a flood of 10,000/s a handshake may still take 400 ms.
pub const MAX_HANDSHAKES: usize = 4096;
/// Sockets of all kinds, handshakes too.
pub const MAX_SOCKETS: usize = 2 * MAX_CONNECTIONS + MAX_HANDSHAKES;
/// Datagrams waiting in one UDP socket: enough for the answers to a name lookup.
pub const MAX_DATAGRAMS: usize = 64;
/// Neighbours remembered; the oldest goes first, so that a scan cannot grow it.
pub const MAX_NEIGHBOURS: usize = 256;
/// Packets kept for one neighbour while its address is asked for.
pub const MAX_NEIGHBOUR_QUEUE: usize = 16;
/// Frames waiting for the driver; past it the newest is dropped, as by a full link.
pub const MAX_TRANSMIT_QUEUE: usize = 1024;
/// The first of the ports given to sockets that did not bind (RFC 6335).
pub const EPHEMERAL_FIRST: u16 = 49152;

/// An idle connection is probed each time so many seconds pass, where its socket asks for it.
pub const KEEP_ALIVE_S: u64 = 75;
/// Probes without an answer after which the connection is given up.
pub const KEEP_ALIVE_PROBES: u32 = 8;

/// What the stack is told once, at the start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The card's address.
    pub mac: [u8; 6],
    /// The largest IP packet of the link, in bytes.
    pub mtu: usize,
    /// Where the IPv4 address comes from.
    pub address: AddressSource,
    /// Random bytes: they key the initial sequence numbers and the choice of ports.
    pub secret: [u8; 32],
}

#[derive(Clone, Debug)]
pub enum AddressSource {
    Static(Lease),
    Dhcp,
}

/// An address and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    /// Bits of the network part, 0 to 32.
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, at most [`MAX_NAME_SERVERS`].
    pub name_servers: alloc::vec::Vec<Ipv4Addr>,
}

impl Lease {
    /// What `/etc/resolv.conf` says.
    pub fn resolv_conf(&self) -> alloc::string::String {
        let line = |server| alloc::format!("nameserver {server}\n");
        self.name_servers.iter().map(line).collect()
    }

    /// What `/etc/hosts` says of the machine called `name`.
    pub fn hosts(&self, name: &str) -> alloc::string::String {
        alloc::format!("127.0.0.1 localhost\n{} {name}\n", self.address)
    }
}

/// As many as a resolver reads from its file.
pub const MAX_NAME_SERVERS: usize = 3;

/// Names one socket of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId {
    index: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Stream,
    Datagram,
}

/// Which directions [`Stack::shutdown`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    Read,
    Write,
    Both,
}

/// What a call on a socket would find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// `recv` or `accept` would not answer `EAGAIN` (data, a connection, the end, an error).
    pub readable: bool,
    /// `send` would not answer `EAGAIN`.
    pub writable: bool,
    /// The peer has ended its direction.
    pub read_closed: bool,
    /// Both directions are ended, or the socket was never connected.
    pub hung_up: bool,
    /// An error waits in [`Stack::take_error`].
    pub error: bool,
}

/// Options of a socket; those not listed are not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketOption {
    NoDelay(bool),
    ReuseAddress(bool),
    KeepAlive(bool),
}

/// Counters that tests and the console read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    pub frames_in: u64,
    pub frames_out: u64,
    /// Frames that were damaged, not for us, or not understood.
    pub frames_dropped: u64,
    pub segments_resent: u64,
    pub connections: usize,
    /// Handshakes that peers began.
    pub handshakes: usize,
    pub sockets: usize,
    /// Bytes that send and receive buffers hold.
    pub memory: usize,
}
