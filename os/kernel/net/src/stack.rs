//! The stack: frames in and out, the table of sockets, and the calls on them.

use crate::dhcp::{self, Dhcp};
use crate::egress::Egress;
use crate::tcp::{send_reset, State, Tcp};
use crate::udp::{self, Udp};
use crate::wire::*;
use crate::*;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

struct Listener {
    local: SocketAddrV4,
    backlog: usize,
    waiting: VecDeque<SocketId>,
    /// Connections in the handshake.
    opening: usize,
}

struct Fresh {
    local: Option<SocketAddrV4>,
    no_delay: bool,
    keep_alive: bool,
}

enum Socket {
    /// A stream socket that neither listens nor connects yet.
    Fresh(Fresh),
    Listener(Listener),
    Tcp(Box<Tcp>),
    Udp(Udp),
}

struct Slot {
    generation: u32,
    socket: Option<Socket>,
}

/// Local and remote address of a connection.
type Key = (SocketAddrV4, SocketAddrV4);

/// One interface's TCP/IP. See the crate's head for how it is driven.
pub struct Stack {
    egress: Egress,
    dhcp: Option<Dhcp>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    connections: BTreeMap<Key, SocketId>,
    listeners: BTreeMap<u16, SocketId>,
    datagrams: BTreeMap<u16, SocketId>,
    events: VecDeque<SocketId>,
    /// Connections with something to send.
    dirty: VecDeque<SocketId>,
    secret: [u8; 32],
    next_port: u16,
    lease_changed: bool,
    statistics: Statistics,
}

impl Stack {
    pub fn new(config: Config) -> Stack {
        let mut egress = Egress::new(config.mac, config.mtu.clamp(576, 65535));
        let transaction = be32(&config.secret, 0);
        let dhcp = match config.address {
            AddressSource::Static(lease) => {
                egress.lease = Some(lease);
                None
            }
            AddressSource::Dhcp => Some(Dhcp::new(transaction)),
        };
        Stack {
            egress,
            dhcp,
            slots: Vec::new(),
            free: Vec::new(),
            connections: BTreeMap::new(),
            listeners: BTreeMap::new(),
            datagrams: BTreeMap::new(),
            events: VecDeque::new(),
            dirty: VecDeque::new(),
            next_port: be16(&config.secret, 4) | EPHEMERAL_FIRST,
            secret: config.secret,
            lease_changed: true,
            statistics: Statistics::default(),
        }
    }

    /// Runs the timers that are due and takes in packets that were sent to ourselves.
    pub fn poll(&mut self, now_us: u64) {
        if let Some(dhcp) = &mut self.dhcp {
            let before = self.egress.lease.is_some();
            dhcp.poll(&mut self.egress, now_us);
            self.lease_changed |= before != self.egress.lease.is_some();
        }
        for index in 0..self.slots.len() {
            let due = match &self.slots[index].socket {
                Some(Socket::Tcp(tcp)) => tcp.deadline().is_some_and(|t| t <= now_us),
                _ => false,
            };
            if due {
                let id = self.id_of(index);
                self.with_tcp(id, |tcp, egress| tcp.poll(egress, now_us));
                self.after_change(id, now_us);
            }
        }
        self.run_loopback(now_us);
    }

    fn run_loopback(&mut self, now_us: u64) {
        // Bounded: each packet can answer with more, and the rest waits for the next call.
        for _ in 0..MAX_TRANSMIT_QUEUE {
            self.flush(now_us);
            let Some(packet) = self.egress.loopback.pop_front() else { break };
            self.receive_ipv4(&packet, now_us);
        }
    }

    /// When `poll` must be called at the latest; `None` where nothing is timed.
    pub fn next_deadline(&self) -> Option<u64> {
        let mut next = self.dhcp.as_ref().map(|d| d.deadline_us);
        if !self.egress.loopback.is_empty() || !self.dirty.is_empty() {
            return Some(0);
        }
        for id in self.connections.values() {
            if let Some(Socket::Tcp(tcp)) = self.socket(*id) {
                next = match (next, tcp.deadline()) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
        }
        next
    }

    /// Hands out up to `max_frames` frames; returns how many.
    pub fn transmit(
        &mut self,
        now_us: u64,
        max_frames: usize,
        emit: &mut dyn FnMut(&[u8]),
    ) -> usize {
        self.flush(now_us);
        let mut sent = 0;
        while sent < max_frames {
            let Some(frame) = self.egress.queue.pop_front() else { break };
            emit(&frame);
            sent += 1;
        }
        self.statistics.frames_out += sent as u64;
        sent
    }

    fn flush(&mut self, now_us: u64) {
        // A full queue to the driver stops the senders, so that nothing is dropped inside.
        for _ in 0..self.dirty.len() {
            if self.egress.queue.len() > MAX_TRANSMIT_QUEUE / 2 {
                break;
            }
            let Some(id) = self.dirty.pop_front() else { break };
            self.with_tcp(id, |tcp, egress| tcp.flush(egress, now_us));
        }
    }

    /// Takes in one Ethernet frame.
    pub fn receive_frame(&mut self, frame: &[u8], now_us: u64) {
        self.statistics.frames_in += 1;
        if frame.len() < ETHERNET_HEADER {
            self.statistics.frames_dropped += 1;
            return;
        }
        let target = &frame[..6];
        if target != self.egress.mac && target != [255; 6] {
            self.statistics.frames_dropped += 1;
            return;
        }
        match be16(frame, 12) {
            TYPE_ARP => self.egress.receive_arp(&frame[ETHERNET_HEADER..], now_us),
            TYPE_IPV4 => self.receive_ipv4(&frame[ETHERNET_HEADER..], now_us),
            _ => self.statistics.frames_dropped += 1,
        }
        if !self.egress.loopback.is_empty() {
            self.run_loopback(now_us);
        }
    }

    fn receive_ipv4(&mut self, data: &[u8], now_us: u64) {
        let Some(packet) = parse_ipv4(data) else {
            self.statistics.frames_dropped += 1;
            return;
        };
        let asking = self.egress.lease.is_none() && packet.protocol == PROTO_UDP;
        let source = packet.source;
        if !(asking || self.egress.is_for_us(packet.target))
            || source.is_multicast()
            || source.is_broadcast()
        {
            self.statistics.frames_dropped += 1;
            return;
        }
        match packet.protocol {
            PROTO_ICMP => self.receive_icmp(&packet, now_us),
            PROTO_UDP => self.receive_udp(&packet, now_us),
            PROTO_TCP if self.egress.is_local(packet.target) => self.receive_tcp(&packet, now_us),
            _ => self.statistics.frames_dropped += 1,
        }
    }

    fn receive_icmp(&mut self, packet: &Packet, now_us: u64) {
        let data = packet.payload;
        // Echo requests only, and never to a broadcast (RFC 1122, 3.2.2.6).
        if data.len() < 8
            || data[0] != 8
            || !self.egress.is_local(packet.target)
            || checksum_finish(checksum_add(0, data)) != 0
        {
            return;
        }
        self.egress.send(packet.target, packet.source, PROTO_ICMP, now_us, |frame| {
            let start = frame.len();
            frame.extend_from_slice(data);
            frame[start..start + 4].fill(0);
            fill_checksum(&mut frame[start..], 2, 0);
        });
    }

    fn receive_udp(&mut self, packet: &Packet, now_us: u64) {
        let Some((source_port, target_port, data)) = udp::parse(packet) else { return };
        if let (Some(dhcp), dhcp::CLIENT_PORT) = (&mut self.dhcp, target_port) {
            let before = self.egress.lease.clone();
            dhcp.receive(&mut self.egress, data, now_us);
            self.lease_changed |= before != self.egress.lease;
            return;
        }
        let Some(&id) = self.datagrams.get(&target_port) else { return };
        let from = SocketAddrV4::new(packet.source, source_port);
        if let Some(Socket::Udp(udp)) = self.socket_mut(id) {
            if udp.deliver(from, data) {
                self.events.push_back(id);
            }
        }
    }

    fn receive_tcp(&mut self, packet: &Packet, now_us: u64) {
        let Some(segment) = parse_tcp(packet) else {
            self.statistics.frames_dropped += 1;
            return;
        };
        let local = SocketAddrV4::new(packet.target, segment.target_port);
        let remote = SocketAddrV4::new(packet.source, segment.source_port);
        let is_syn = segment.flags & (SYN | ACK | RST) == SYN;
        if let Some(&id) = self.connections.get(&(local, remote)) {
            let replace = is_syn
                && matches!(self.socket(id), Some(Socket::Tcp(t)) if t.may_be_replaced(&segment));
            if !replace {
                self.with_tcp(id, |tcp, egress| tcp.on_segment(egress, &segment, now_us));
                return self.after_change(id, now_us);
            }
            self.connections.remove(&(local, remote));
            self.release_if(id, |tcp| tcp.orphan);
        }
        let listener = self.listeners.get(&local.port()).copied();
        let Some(listener_id) = listener else {
            return send_reset(&mut self.egress, packet, &segment, now_us);
        };
        let bound = match self.socket(listener_id) {
            Some(Socket::Listener(l)) => {
                let here = l.local.ip().is_unspecified() || l.local.ip() == local.ip();
                here.then_some(l.waiting.len() + l.opening < l.backlog)
            }
            _ => None,
        };
        match bound {
            Some(room) if is_syn => {
                if !room || !self.has_room() {
                    return; // Dropped: the peer asks again.
                }
                let seq = self.initial_sequence(local, remote, now_us);
                let mut tcp =
                    Tcp::new(local, remote, seq, self.egress.mtu, now_us).passive(&segment);
                tcp.listener = Some(listener_id);
                let id = self.insert(Socket::Tcp(Box::new(tcp)));
                self.connections.insert((local, remote), id);
                if let Some(Socket::Listener(l)) = self.socket_mut(listener_id) {
                    l.opening += 1;
                }
                self.dirty.push_back(id);
            }
            _ => send_reset(&mut self.egress, packet, &segment, now_us),
        }
    }

    fn has_room(&self) -> bool {
        self.connections.len() < MAX_CONNECTIONS
            && self.statistics.memory < MAX_SOCKET_MEMORY
            && self.slots.len() - self.free.len() < 2 * MAX_CONNECTIONS
    }

    /// Looks after a connection whose state may have changed.
    fn after_change(&mut self, id: SocketId, now_us: u64) {
        let Some(Socket::Tcp(tcp)) = self.socket_mut(id) else { return };
        let (state, listener) = (tcp.state, tcp.listener);
        if let (Some(listener_id), false) = (listener, state == State::SynReceived) {
            tcp.listener = None;
            let failed = state == State::Closed;
            let key = (tcp.local, tcp.remote);
            match self.socket_mut(listener_id) {
                Some(Socket::Listener(l)) => {
                    l.opening -= 1;
                    if !failed {
                        l.waiting.push_back(id);
                        self.events.push_back(listener_id);
                    }
                }
                _ => self.with_tcp(id, |tcp, egress| tcp.abort(egress, now_us)),
            }
            if failed {
                self.connections.remove(&key);
                return self.release(id);
            }
        }
        self.dirty.push_back(id);
        self.events.push_back(id);
        self.collect(id);
    }

    /// Frees a connection that has ended and that nobody holds.
    fn collect(&mut self, id: SocketId) {
        let Some(Socket::Tcp(tcp)) = self.socket(id) else { return };
        if tcp.state == State::Closed {
            let key = (tcp.local, tcp.remote);
            if self.connections.get(&key) == Some(&id) {
                self.connections.remove(&key);
            }
            self.release_if(id, |tcp| tcp.orphan);
        }
    }

    fn release_if(&mut self, id: SocketId, condition: impl FnOnce(&Tcp) -> bool) {
        if matches!(self.socket(id), Some(Socket::Tcp(tcp)) if condition(tcp)) {
            self.release(id);
        }
    }

    /// The initial sequence number of RFC 6528: a clock of 4 us plus a keyed hash of the four
    /// addresses, so that it cannot be guessed from another connection's.
    fn initial_sequence(&self, local: SocketAddrV4, remote: SocketAddrV4, now_us: u64) -> u32 {
        let mut input = [0u8; 12];
        input[..4].copy_from_slice(&local.ip().octets());
        input[4..6].copy_from_slice(&local.port().to_be_bytes());
        input[6..10].copy_from_slice(&remote.ip().octets());
        input[10..12].copy_from_slice(&remote.port().to_be_bytes());
        ((now_us / 4) as u32).wrapping_add(siphash(&self.secret, &input) as u32)
    }

    fn id_of(&self, index: usize) -> SocketId {
        SocketId { index: index as u32, generation: self.slots[index].generation }
    }

    fn insert(&mut self, socket: Socket) -> SocketId {
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None => {
                self.slots.push(Slot { generation: 0, socket: None });
                self.slots.len() - 1
            }
        };
        self.slots[index].socket = Some(socket);
        self.id_of(index)
    }

    fn release(&mut self, id: SocketId) {
        let slot = &mut self.slots[id.index as usize];
        if slot.generation == id.generation {
            if let Some(Socket::Tcp(tcp)) = slot.socket.take() {
                self.statistics.memory -= tcp.memory();
                self.statistics.segments_resent += tcp.resent;
            }
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(id.index);
        }
    }

    fn socket(&self, id: SocketId) -> Option<&Socket> {
        let slot = self.slots.get(id.index as usize)?;
        slot.socket.as_ref().filter(|_| slot.generation == id.generation)
    }

    fn socket_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.socket.as_mut().filter(|_| slot.generation == id.generation)
    }

    /// Runs `change` on a connection and keeps the sum of buffered bytes right.
    fn with_tcp(&mut self, id: SocketId, change: impl FnOnce(&mut Tcp, &mut Egress)) {
        let Some(slot) = self.slots.get_mut(id.index as usize) else { return };
        if slot.generation != id.generation {
            return;
        }
        if let Some(Socket::Tcp(tcp)) = &mut slot.socket {
            let before = tcp.memory();
            change(tcp, &mut self.egress);
            self.statistics.memory = self.statistics.memory + tcp.memory() - before;
        }
    }

    /// A socket whose readiness may have changed since it was last named.
    pub fn take_event(&mut self) -> Option<SocketId> {
        self.events.pop_front()
    }

    /// The lease, once after each change of it.
    pub fn take_lease_change(&mut self) -> Option<Option<Lease>> {
        core::mem::take(&mut self.lease_changed).then(|| self.egress.lease.clone())
    }

    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.statistics;
        statistics.connections = self.connections.len();
        statistics.sockets = self.slots.len() - self.free.len();
        statistics
    }

    /// Makes a socket.
    pub fn open(&mut self, kind: Kind) -> Result<SocketId, Error> {
        if !self.has_room() {
            return Err(Error::NoMemory);
        }
        Ok(self.insert(match kind {
            Kind::Stream => {
                Socket::Fresh(Fresh { local: None, no_delay: false, keep_alive: false })
            }
            Kind::Datagram => Socket::Udp(Udp::new()),
        }))
    }

    /// Gives the socket its local address; port 0 chooses one.
    pub fn bind(&mut self, id: SocketId, address: SocketAddrV4) -> Result<(), Error> {
        let ip = *address.ip();
        if !ip.is_unspecified() && !self.egress.is_local(ip) {
            return Err(Error::AddressNotAvailable);
        }
        let datagram = matches!(self.socket(id), Some(Socket::Udp(_)));
        let port = match address.port() {
            0 => self.choose_port(datagram)?,
            port if datagram && self.datagrams.contains_key(&port) => {
                return Err(Error::AddressInUse)
            }
            port if !datagram && self.stream_port_taken(port) => return Err(Error::AddressInUse),
            port => port,
        };
        let chosen = SocketAddrV4::new(ip, port);
        match self.socket_mut(id) {
            Some(Socket::Fresh(Fresh { local: local @ None, .. })) => *local = Some(chosen),
            Some(Socket::Udp(Udp { local: local @ None, .. })) => {
                *local = Some(chosen);
                self.datagrams.insert(port, id);
            }
            _ => return Err(Error::Invalid),
        }
        Ok(())
    }

    fn stream_port_taken(&self, port: u16) -> bool {
        self.listeners.contains_key(&port)
            || self.slots.iter().any(|slot| {
                matches!(&slot.socket, Some(Socket::Fresh(Fresh { local: Some(local), .. }))
                    if local.port() == port)
            })
    }

    fn choose_port(&mut self, datagram: bool) -> Result<u16, Error> {
        for _ in EPHEMERAL_FIRST..=u16::MAX {
            let port = self.next_port;
            self.next_port = port.wrapping_add(1).max(EPHEMERAL_FIRST);
            let taken = if datagram {
                self.datagrams.contains_key(&port)
            } else {
                self.stream_port_taken(port)
                    || self.connections.keys().any(|(local, _)| local.port() == port)
            };
            if !taken {
                return Ok(port);
            }
        }
        Err(Error::AddressInUse)
    }

    pub fn listen(&mut self, id: SocketId, backlog: usize) -> Result<(), Error> {
        let local = match self.socket_mut(id) {
            Some(Socket::Listener(listener)) => {
                listener.backlog = backlog.clamp(1, MAX_BACKLOG);
                return Ok(());
            }
            Some(Socket::Fresh(fresh)) => fresh.local,
            _ => return Err(Error::NotSupported),
        };
        let local = match local {
            Some(local) => local,
            None => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, self.choose_port(false)?),
        };
        let backlog = backlog.clamp(1, MAX_BACKLOG);
        let listener = Listener { local, backlog, waiting: VecDeque::new(), opening: 0 };
        self.listeners.insert(local.port(), id);
        if let Some(socket) = self.socket_mut(id) {
            *socket = Socket::Listener(listener);
        }
        Ok(())
    }

    pub fn accept(&mut self, id: SocketId) -> Result<(SocketId, SocketAddrV4), Error> {
        let Some(Socket::Listener(listener)) = self.socket_mut(id) else {
            return Err(Error::Invalid);
        };
        let accepted = listener.waiting.pop_front().ok_or(Error::WouldBlock)?;
        let peer = match self.socket(accepted) {
            Some(Socket::Tcp(tcp)) => tcp.remote,
            _ => return Err(Error::Invalid),
        };
        Ok((accepted, peer))
    }

    /// Begins to connect a stream (`InProgress`: wait for `writable`, then `take_error`), or
    /// names a datagram socket's peer.
    pub fn connect(
        &mut self,
        id: SocketId,
        remote: SocketAddrV4,
        now_us: u64,
    ) -> Result<(), Error> {
        let remote = match remote.ip().is_unspecified() {
            true => SocketAddrV4::new(Ipv4Addr::LOCALHOST, remote.port()),
            false => remote,
        };
        let source = self.egress.source_for(*remote.ip()).ok_or(Error::Unreachable)?;
        let (bound, no_delay, keep_alive) = match self.socket(id) {
            Some(Socket::Fresh(f)) => (f.local, f.no_delay, f.keep_alive),
            Some(Socket::Udp(udp)) => {
                if udp.local.is_none() {
                    self.bind(id, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
                }
                if let Some(Socket::Udp(udp)) = self.socket_mut(id) {
                    udp.remote = Some(remote);
                    let port = udp.local.map_or(0, |l| l.port());
                    udp.local = Some(SocketAddrV4::new(source, port));
                }
                return Ok(());
            }
            Some(Socket::Tcp(tcp)) if tcp.is_connecting() => return Err(Error::InProgress),
            Some(Socket::Tcp(tcp)) => {
                return Err(tcp.error.unwrap_or(Error::AlreadyConnected));
            }
            _ => return Err(Error::Invalid),
        };
        if remote.port() == 0 || self.connections.len() >= MAX_CONNECTIONS {
            return Err(Error::AddressNotAvailable);
        }
        let port = match bound {
            Some(local) => local.port(),
            None => self.choose_port(false)?,
        };
        let ip = bound.map(|l| *l.ip()).filter(|ip| !ip.is_unspecified()).unwrap_or(source);
        let local = SocketAddrV4::new(ip, port);
        if self.connections.contains_key(&(local, remote)) {
            return Err(Error::AddressInUse);
        }
        let seq = self.initial_sequence(local, remote, now_us);
        let mut tcp = Tcp::new(local, remote, seq, self.egress.mtu, now_us);
        tcp.no_delay = no_delay;
        tcp.keep_alive = keep_alive;
        self.connections.insert((local, remote), id);
        if let Some(socket) = self.socket_mut(id) {
            *socket = Socket::Tcp(Box::new(tcp));
        }
        self.dirty.push_back(id);
        Err(Error::InProgress)
    }

    /// Takes what fits of `data` into the send buffer.
    pub fn send(&mut self, id: SocketId, data: &[u8]) -> Result<usize, Error> {
        let total = self.statistics.memory;
        match self.socket_mut(id) {
            Some(Socket::Tcp(tcp)) => {
                if let Some(error) = tcp.error.take() {
                    return Err(error);
                }
                if matches!(tcp.state, State::SynSent | State::SynReceived) {
                    return Err(Error::WouldBlock);
                }
                if !tcp.can_send() {
                    return Err(Error::BrokenPipe);
                }
                let room = SEND_BUFFER - tcp.transmit.len().min(SEND_BUFFER);
                let taken = data.len().min(room).min(MAX_SOCKET_MEMORY.saturating_sub(total));
                if taken == 0 && !data.is_empty() {
                    return Err(Error::WouldBlock);
                }
                tcp.transmit.extend(&data[..taken]);
                self.statistics.memory += taken;
                self.dirty.push_back(id);
                Ok(taken)
            }
            Some(Socket::Udp(udp)) if udp.remote.is_some() => {
                Err(Error::Invalid) // Datagrams go by `send_to`, which knows the time.
            }
            // Linux's answer for a stream that was never connected.
            Some(Socket::Fresh(_) | Socket::Listener(_)) => Err(Error::BrokenPipe),
            Some(_) => Err(Error::NotConnected),
            None => Err(Error::Invalid),
        }
    }

    /// Sends one datagram, to the connected peer where `target` is `None`.
    pub fn send_to(
        &mut self,
        id: SocketId,
        data: &[u8],
        target: Option<SocketAddrV4>,
        now_us: u64,
    ) -> Result<usize, Error> {
        if data.len() > self.egress.mtu - IPV4_HEADER - UDP_HEADER {
            return Err(Error::MessageTooLong);
        }
        if matches!(self.socket(id), Some(Socket::Udp(Udp { local: None, .. }))) {
            self.bind(id, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
        }
        let Some(Socket::Udp(udp)) = self.socket(id) else { return Err(Error::Invalid) };
        let target = target.or(udp.remote).ok_or(Error::NotConnected)?;
        let port = udp.local.map_or(0, |l| l.port());
        let source = self.egress.source_for(*target.ip()).ok_or(Error::Unreachable)?;
        match self.egress.send_udp(SocketAddrV4::new(source, port), target, data, now_us) {
            true => Ok(data.len()),
            false => Err(Error::Unreachable),
        }
    }

    /// Takes received bytes, or leaves them where `peek` is set; 0 is the peer's end.
    pub fn recv(&mut self, id: SocketId, out: &mut [u8], peek: bool) -> Result<usize, Error> {
        self.recv_from(id, out, peek).map(|(n, _)| n)
    }

    /// As `recv`, with a datagram's sender.
    pub fn recv_from(
        &mut self,
        id: SocketId,
        out: &mut [u8],
        peek: bool,
    ) -> Result<(usize, Option<SocketAddrV4>), Error> {
        match self.socket_mut(id) {
            Some(Socket::Tcp(tcp)) => {
                let taken = tcp.receive.len().min(out.len());
                if taken == 0 && !(out.is_empty() && !tcp.receive.is_empty()) {
                    if let Some(error) = tcp.error.take() {
                        return Err(error);
                    }
                    let opening = matches!(tcp.state, State::SynSent | State::SynReceived);
                    return match tcp.readiness().read_closed && !opening {
                        true => Ok((0, None)),
                        false => Err(Error::WouldBlock),
                    };
                }
                let (a, b) = tcp.receive.as_slices();
                let first = a.len().min(taken);
                out[..first].copy_from_slice(&a[..first]);
                out[first..taken].copy_from_slice(&b[..taken - first]);
                if !peek {
                    tcp.receive.drain(..taken);
                    tcp.window_opened();
                    self.statistics.memory -= taken;
                    self.dirty.push_back(id);
                }
                Ok((taken, None))
            }
            Some(Socket::Udp(udp)) => {
                let Some((from, data)) = udp.received.front() else {
                    return if udp.closed { Ok((0, None)) } else { Err(Error::WouldBlock) };
                };
                let (from, taken) = (*from, data.len().min(out.len()));
                out[..taken].copy_from_slice(&data[..taken]);
                if !peek {
                    udp.received.pop_front();
                }
                Ok((taken, Some(from)))
            }
            Some(_) => Err(Error::NotConnected),
            None => Err(Error::Invalid),
        }
    }

    pub fn shutdown(&mut self, id: SocketId, how: Shutdown) -> Result<(), Error> {
        match self.socket_mut(id) {
            Some(Socket::Tcp(tcp)) if tcp.state != State::Closed => {
                if how != Shutdown::Write {
                    tcp.read_shut = true;
                }
                if how != Shutdown::Read {
                    tcp.finish();
                }
                self.dirty.push_back(id);
                self.events.push_back(id);
                self.collect(id);
                Ok(())
            }
            Some(Socket::Udp(udp)) if udp.remote.is_some() => {
                udp.closed = how != Shutdown::Write;
                self.events.push_back(id);
                Ok(())
            }
            Some(Socket::Listener(_)) if how != Shutdown::Write => Ok(()),
            Some(_) => Err(Error::NotConnected),
            None => Err(Error::Invalid),
        }
    }

    /// Gives the socket up. A connection goes on by itself until its end is settled.
    pub fn close(&mut self, id: SocketId, now_us: u64) {
        match self.socket_mut(id) {
            Some(Socket::Tcp(_)) => {
                self.with_tcp(id, |tcp, egress| tcp.orphan(egress, now_us));
                self.dirty.push_back(id);
                self.collect(id);
            }
            Some(Socket::Listener(listener)) => {
                let port = listener.local.port();
                let waiting = core::mem::take(&mut listener.waiting);
                self.listeners.remove(&port);
                self.release(id);
                for waiting_id in waiting {
                    self.with_tcp(waiting_id, |tcp, egress| {
                        tcp.orphan = true;
                        tcp.abort(egress, now_us);
                    });
                    self.collect(waiting_id);
                }
            }
            Some(Socket::Udp(udp)) => {
                if let Some(local) = udp.local {
                    self.datagrams.remove(&local.port());
                }
                self.release(id);
            }
            Some(Socket::Fresh(_)) => self.release(id),
            None => {}
        }
    }

    pub fn readiness(&self, id: SocketId) -> Readiness {
        match self.socket(id) {
            Some(Socket::Tcp(tcp)) => tcp.readiness(),
            Some(Socket::Listener(listener)) => {
                Readiness { readable: !listener.waiting.is_empty(), ..Readiness::default() }
            }
            Some(Socket::Udp(udp)) => udp.readiness(),
            // Linux says so of a stream that was never connected.
            Some(Socket::Fresh(_)) => {
                Readiness { writable: true, hung_up: true, ..Readiness::default() }
            }
            None => Readiness::default(),
        }
    }

    /// The waiting error, once.
    pub fn take_error(&mut self, id: SocketId) -> Option<Error> {
        match self.socket_mut(id) {
            Some(Socket::Tcp(tcp)) => tcp.error.take(),
            _ => None,
        }
    }

    pub fn local_address(&self, id: SocketId) -> Option<SocketAddrV4> {
        match self.socket(id)? {
            Socket::Tcp(tcp) => Some(tcp.local),
            Socket::Listener(listener) => Some(listener.local),
            Socket::Fresh(fresh) => fresh.local,
            Socket::Udp(udp) => udp.local,
        }
    }

    pub fn peer_address(&self, id: SocketId) -> Option<SocketAddrV4> {
        match self.socket(id)? {
            Socket::Tcp(t) if !t.is_connecting() && t.state != State::Closed => Some(t.remote),
            Socket::Udp(udp) => udp.remote,
            _ => None,
        }
    }

    pub fn is_listening(&self, id: SocketId) -> bool {
        matches!(self.socket(id), Some(Socket::Listener(_)))
    }

    pub fn set_option(&mut self, id: SocketId, option: SocketOption) -> Result<(), Error> {
        match (self.socket_mut(id).ok_or(Error::Invalid)?, option) {
            (Socket::Tcp(tcp), SocketOption::NoDelay(on)) => tcp.no_delay = on,
            (Socket::Tcp(tcp), SocketOption::KeepAlive(on)) => tcp.keep_alive = on,
            (Socket::Fresh(fresh), SocketOption::NoDelay(on)) => fresh.no_delay = on,
            (Socket::Fresh(fresh), SocketOption::KeepAlive(on)) => fresh.keep_alive = on,
            // An address is free as soon as its holder closed: there is nothing to allow.
            _ => {}
        }
        Ok(())
    }

    /// Buffered bytes not yet read, for FIONREAD.
    pub fn pending(&self, id: SocketId) -> usize {
        match self.socket(id) {
            Some(Socket::Tcp(tcp)) => tcp.receive.len(),
            Some(Socket::Udp(udp)) => udp.received.front().map_or(0, |(_, data)| data.len()),
            _ => 0,
        }
    }
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) of `data` under the first half of `key`.
fn siphash(key: &[u8; 32], data: &[u8]) -> u64 {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&key[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (k0, k1) = (word(0), word(8));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    fn round(v: &mut [u64; 4]) {
        v[0] = v[0].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[2] = v[2].rotate_left(32);
    }
    let mut chunks = data.chunks_exact(8);
    let absorb = |v: &mut [u64; 4], m: u64| {
        v[3] ^= m;
        round(v);
        round(v);
        v[0] ^= m;
    };
    for chunk in &mut chunks {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(chunk);
        absorb(&mut v, u64::from_le_bytes(bytes));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    last[7] = data.len() as u8;
    absorb(&mut v, u64::from_le_bytes(last));
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}
