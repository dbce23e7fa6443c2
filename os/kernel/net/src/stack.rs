//! The stack: frames in and out, the table of sockets, and the calls on them.

use crate::buffer::{MEMORY_LEAN, MEMORY_SHARED};
use crate::dhcp::{self, Dhcp};
use crate::egress::Egress;
use crate::tcp::*;
use crate::udp::{self, Udp};
use crate::wire::*;
use crate::*;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::hash::Hasher;

struct Listener {
    local: SocketAddrV4,
    backlog: usize,
    waiting: VecDeque<SocketId>,
}

#[derive(Default)]
struct Fresh {
    local: Option<SocketAddrV4>,
    no_delay: bool,
    keep_alive: bool,
}

/// A connection whose handshake a peer began: what is needed to make it, should that end.
struct Handshake {
    key: Key,
    listener: SocketId,
    syn: Segment<'static>,
    /// Our initial sequence number and the offset of our clock.
    numbers: (u32, u32),
    sent_us: u64,
    resends: u32,
}

enum Socket {
    /// A stream socket that neither listens nor connects yet.
    Fresh(Fresh),
    Listener(Listener),
    Handshake(Box<Handshake>),
    Tcp(Box<Tcp>),
    Udp(Udp),
}

#[derive(Default)]
struct Slot {
    generation: u32,
    socket: Option<Socket>,
    /// Whether the socket stands in the stack's lists of these names.
    dirty: bool,
    event: bool,
    /// Its place in `timers`: never later than what is due.
    timer: Option<u64>,
}

/// One interface's TCP/IP. See the crate's head for how it is driven.
#[derive(Default)]
pub struct Stack {
    egress: Egress,
    dhcp: Option<Dhcp>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Connections and handshakes.
    connections: BTreeMap<Key, SocketId>,
    listeners: BTreeMap<u16, SocketId>,
    datagrams: BTreeMap<u16, SocketId>,
    events: VecDeque<SocketId>,
    /// Connections with something to send.
    dirty: VecDeque<SocketId>,
    timers: BTreeSet<(u64, SocketId)>,
    /// Handshakes from the oldest, with some that have ended since.
    handshakes: VecDeque<SocketId>,
    handshakes_open: usize,
    secret: [u8; 32],
    drawn: u64,
    lease_changed: bool,
    statistics: Statistics,
}

impl Stack {
    pub fn new(config: Config) -> Stack {
        let mut egress = Egress::new(config.mac, config.mtu.clamp(576, 65535));
        let transaction = siphash(&config.secret, b"dhcp") as u32;
        let dhcp = match config.address {
            AddressSource::Static(lease) => {
                egress.lease = Some(lease);
                None
            }
            AddressSource::Dhcp => Some(Dhcp::new(transaction)),
        };
        let secret = config.secret;
        Stack { egress, dhcp, secret, lease_changed: true, ..Stack::default() }
    }

    /// Runs the timers that are due and takes in packets that were sent to ourselves.
    pub fn poll(&mut self, now_us: u64) {
        if let Some(dhcp) = self.dhcp.as_mut().filter(|dhcp| dhcp.deadline_us <= now_us) {
            let before = self.egress.lease.clone();
            dhcp.poll(&mut self.egress, now_us);
            self.after_lease(before);
        }
        while let Some(&(due, id)) = self.timers.first().filter(|(due, _)| *due <= now_us) {
            self.timers.remove(&(due, id));
            if self.socket(id).is_none() {
                continue;
            }
            self.slots[id.index as usize].timer = None;
            if matches!(self.socket(id), Some(Socket::Handshake(_))) {
                self.answer(id, now_us);
            } else if self.with_tcp(id, |tcp, egress| tcp.poll(egress, now_us)) == Some(true) {
                self.after_change(id);
            }
        }
        self.run_loopback(now_us);
    }

    fn run_loopback(&mut self, now_us: u64) {
        // Bounded: each packet can answer with more, and the rest waits for the next call.
        for _ in 0..MAX_TRANSMIT_QUEUE {
            self.flush(now_us);
            let Some(frame) = self.egress.loopback.pop_front() else { break };
            self.receive_ipv4(&frame[ETHERNET_HEADER..], now_us);
            self.egress.recycle(frame);
        }
    }

    /// When `poll` must be called at the latest; `None` where nothing is timed.
    pub fn next_deadline(&self) -> Option<u64> {
        if !self.egress.loopback.is_empty() || !self.dirty.is_empty() {
            return Some(0);
        }
        let timer = self.timers.first().map(|(due, _)| *due);
        let dhcp = self.dhcp.as_ref().map(|d| d.deadline_us);
        timer.into_iter().chain(dhcp).min()
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
            self.egress.recycle(frame);
            sent += 1;
        }
        self.statistics.frames_out += sent as u64;
        sent
    }

    fn flush(&mut self, now_us: u64) {
        for _ in 0..self.dirty.len() {
            if !self.egress.has_room() {
                break;
            }
            let Some(id) = self.dirty.pop_front() else { break };
            if self.socket(id).is_some() {
                self.slots[id.index as usize].dirty = false;
            }
            if self.with_tcp(id, |tcp, egress| tcp.flush(egress, now_us)) == Some(true) {
                self.mark_dirty(id);
            }
        }
    }

    /// Takes in one Ethernet frame.
    pub fn receive_frame(&mut self, frame: &[u8], now_us: u64) {
        self.statistics.frames_in += 1;
        let for_us = frame.len() >= ETHERNET_HEADER
            && (frame[..6] == self.egress.mac || frame[..6] == [255; 6]);
        match for_us.then(|| be16(frame, 12)) {
            Some(TYPE_ARP) => self.egress.receive_arp(&frame[ETHERNET_HEADER..], now_us),
            Some(TYPE_IPV4) => {
                let data = &frame[ETHERNET_HEADER..];
                // Nobody outside has our own addresses (RFC 1122, 3.2.1.3).
                let ours =
                    |at| data.len() >= IPV4_HEADER && self.egress.is_local(address(data, at));
                let inside = data.len() >= IPV4_HEADER && address(data, 16).is_loopback();
                match ours(12) || inside {
                    true => self.drop_frame(),
                    false => self.receive_ipv4(data, now_us),
                }
            }
            _ => self.drop_frame(),
        }
        if !self.egress.loopback.is_empty() {
            self.run_loopback(now_us);
        }
    }

    /// Counts a frame that was damaged, not for us, or not understood.
    fn drop_frame(&mut self) {
        self.statistics.frames_dropped += 1;
    }

    fn receive_ipv4(&mut self, data: &[u8], now_us: u64) {
        let Some(packet) = parse_ipv4(data) else { return self.drop_frame() };
        let asking = self.egress.lease.is_none() && packet.protocol == PROTO_UDP;
        let source = packet.source;
        if !(asking || self.egress.is_for_us(packet.target))
            || source.is_multicast()
            || self.egress.is_broadcast(source)
        {
            return self.drop_frame();
        }
        match packet.protocol {
            PROTO_ICMP => self.receive_icmp(&packet, now_us),
            PROTO_UDP => self.receive_udp(&packet, now_us),
            PROTO_TCP if self.egress.is_local(packet.target) => self.receive_tcp(&packet, now_us),
            PROTO_TCP => self.drop_frame(),
            _ => self.egress.send_unreachable(&packet, 2, now_us),
        }
    }

    fn receive_icmp(&mut self, packet: &Packet, now_us: u64) {
        let data = packet.payload;
        if data.len() < 8 || checksum_finish(checksum_add(0, data)) != 0 {
            return self.drop_frame();
        }
        // Echo requests, but none to a broadcast (RFC 1122, 3.2.2.6).
        let fits = packet.whole.len() <= self.egress.mtu;
        if data[0] == 8 && self.egress.is_local(packet.target) && fits {
            self.egress.send_icmp(packet, (0, 0), &data[4..], now_us);
        } else if data[0] == 3 {
            self.receive_unreachable(data[1], usize::from(be16(data, 6)), &data[8..]);
        }
    }

    /// `quote` is the beginning of a packet that we are said to have sent.
    fn receive_unreachable(&mut self, code: u8, mtu: usize, quote: &[u8]) {
        let header = quote.first().map_or(0, |first| usize::from(first & 15) * 4);
        if header < IPV4_HEADER || quote.len() < header + 8 {
            return;
        }
        let local = SocketAddrV4::new(address(quote, 12), be16(quote, header));
        let remote = SocketAddrV4::new(address(quote, 16), be16(quote, header + 2));
        if quote[9] == PROTO_TCP {
            let Some(&id) = self.connections.get(&key_of(local, remote)) else { return };
            let seq = be32(quote, header + 4);
            if self.with_tcp(id, |tcp, _| tcp.on_unreachable(seq, code, mtu)).is_some() {
                self.after_change(id);
            }
        } else if quote[9] == PROTO_UDP && code != 4 {
            let Some(&id) = self.datagrams.get(&local.port()) else { return };
            if let Some(Socket::Udp(udp)) = self.socket_mut(id) {
                if udp.remote == Some(remote) {
                    udp.error = Some(Error::ECONNREFUSED);
                    self.mark_event(id);
                }
            }
        }
    }

    fn receive_udp(&mut self, packet: &Packet, now_us: u64) {
        let Some((source_port, target_port, data)) = udp::parse(packet) else {
            return self.drop_frame();
        };
        if let (Some(dhcp), dhcp::CLIENT_PORT) = (&mut self.dhcp, target_port) {
            let before = self.egress.lease.clone();
            dhcp.receive(&mut self.egress, data, now_us);
            return self.after_lease(before);
        }
        let Some(&id) = self.datagrams.get(&target_port) else {
            return self.egress.send_unreachable(packet, 3, now_us);
        };
        let from = SocketAddrV4::new(packet.source, source_port);
        let room = self.egress.memory + data.len() <= MEMORY_SHARED;
        if let Some(Socket::Udp(udp)) = self.socket_mut(id).filter(|_| room) {
            if udp.deliver(from, data) {
                self.egress.memory += data.len();
                self.mark_event(id);
            }
        }
    }

    /// Ends the connections of an address that is no longer ours.
    fn after_lease(&mut self, before: Option<Lease>) {
        if before == self.egress.lease {
            return;
        }
        self.lease_changed = true;
        if before.is_none_or(|lease| self.egress.is_local(lease.address)) {
            return;
        }
        let gone = |key: &Key| !self.egress.is_local(*local_of(*key).ip());
        let ids = self.connections.iter().filter(|(key, _)| gone(key)).map(|(_, id)| *id);
        for id in ids.collect::<Vec<_>>() {
            self.with_tcp(id, |tcp, _| tcp.fail(Some(Error::EADDRNOTAVAIL)));
            self.after_change(id);
        }
    }

    fn receive_tcp(&mut self, packet: &Packet, now_us: u64) {
        let Some(segment) = parse_tcp(packet) else { return self.drop_frame() };
        let local = SocketAddrV4::new(packet.target, segment.target_port);
        let remote = SocketAddrV4::new(packet.source, segment.source_port);
        let key = key_of(local, remote);
        let is_syn = segment.flags & (SYN | ACK | RST | FIN) == SYN;
        let mut above = None;
        if let Some(&id) = self.connections.get(&key) {
            match self.socket(id) {
                Some(Socket::Handshake(handshake)) => {
                    if !is_syn || segment.seq == handshake.syn.seq {
                        return self.continue_handshake(id, &segment, now_us);
                    }
                    self.forget_handshake(id); // The peer began anew.
                }
                Some(Socket::Tcp(tcp)) => {
                    above = tcp.may_be_replaced(&segment).filter(|_| is_syn);
                    if above.is_none() {
                        self.with_tcp(id, |tcp, egress| tcp.on_segment(egress, &segment, now_us));
                        return self.after_change(id);
                    }
                    self.with_tcp(id, |tcp, _| tcp.fail(None));
                    self.after_change(id);
                }
                _ => {}
            }
        }
        let here = |id: &SocketId| {
            matches!(self.socket(*id), Some(Socket::Listener(l))
                if is_syn && (l.local.ip().is_unspecified() || l.local.ip() == local.ip()))
        };
        let listener = self.listeners.get(&local.port()).copied().filter(here);
        let Some(listener) = listener else {
            return send_reset(&mut self.egress, key, &segment, now_us);
        };
        // Answers to a flood leave most of the way out to others.
        if self.egress.queue.len() > MAX_TRANSMIT_QUEUE / 4 || remote.port() == 0 {
            return;
        }
        if self.handshakes.len() >= MAX_HANDSHAKES {
            if let Some(oldest) = self.handshakes.pop_front() {
                self.forget_handshake(oldest);
            }
        }
        if self.slots.len() - self.free.len() >= MAX_SOCKETS {
            return;
        }
        let mut numbers = self.initial_numbers(key, now_us);
        if above.is_some_and(|above| !after(numbers.0, above)) {
            numbers.0 = above.unwrap_or(0).wrapping_add(0x1_0000);
        }
        let (syn, sent_us, resends) = (segment.head(), now_us, 0);
        let handshake = Handshake { key, listener, syn, numbers, sent_us, resends };
        let id = self.insert(Socket::Handshake(Box::new(handshake)));
        self.connections.insert(key, id);
        self.handshakes.push_back(id);
        self.handshakes_open += 1;
        self.answer(id, now_us);
    }

    /// Sends our answer to the SYN, which asks the peer to go on.
    fn answer(&mut self, id: SocketId, now_us: u64) {
        let Some(Socket::Handshake(h)) = self.socket_mut(id) else { return };
        let (key, numbers, resends) = (h.key, h.numbers, h.resends);
        let syn = h.syn.clone();
        h.resends += 1;
        if resends > MAX_SYN_RESENDS {
            return self.forget_handshake(id);
        }
        let mut tcp = Tcp::new(key, numbers, self.egress.mtu, now_us).passive(&syn, now_us);
        tcp.flush(&mut self.egress, now_us);
        self.set_timer(id, Some(now_us + (RTO_INITIAL_US << resends)));
    }

    fn continue_handshake(&mut self, id: SocketId, segment: &Segment, now_us: u64) {
        let Some(Socket::Handshake(h)) = self.socket(id) else { return };
        let tcp = Tcp::new(h.key, h.numbers, self.egress.mtu, now_us).passive(&h.syn, now_us);
        let (listener_id, mut tcp) = (h.listener, tcp.answered(h.sent_us, h.resends - 1));
        let room = match self.socket(listener_id) {
            Some(Socket::Listener(l)) => Some(l.waiting.len() < l.backlog),
            _ => None,
        };
        let begins = segment.flags & (RST | ACK) == ACK;
        if begins && (room == Some(false) || (room.is_some() && !self.make_room())) {
            return; // Dropped: our answer goes again, and the peer's with it.
        }
        tcp.on_segment(&mut self.egress, segment, now_us);
        if tcp.state == State::SynReceived {
            tcp.flush(&mut self.egress, now_us);
            return;
        }
        let Some(Socket::Listener(listener)) = self.socket_mut(listener_id) else {
            tcp.abort(&mut self.egress, now_us);
            return self.forget_handshake(id);
        };
        if tcp.state == State::Closed {
            return self.forget_handshake(id);
        }
        listener.waiting.push_back(id);
        self.handshakes_open -= 1;
        self.egress.memory += tcp.memory();
        self.slots[id.index as usize].socket = Some(Socket::Tcp(Box::new(tcp)));
        self.mark_event(listener_id);
        self.with_tcp(id, |_, _| ());
        self.after_change(id);
    }

    fn forget_handshake(&mut self, id: SocketId) {
        if let Some(Socket::Handshake(h)) = self.socket(id) {
            let key = h.key;
            self.connections.remove(&key);
            self.handshakes_open -= 1;
            self.release(id);
        }
    }

    /// Whether there is room for one more connection. Those that only wait out their time, with
    /// nobody holding them, make room.
    fn make_room(&mut self) -> bool {
        if self.connections.len() - self.handshakes_open < MAX_CONNECTIONS {
            return true;
        }
        let over = |tcp: &Tcp| {
            tcp.orphan && matches!(tcp.state, State::TimeWait | State::FinWait2 | State::Closed)
        };
        let waits = |id: &&SocketId| matches!(self.socket(**id), Some(Socket::Tcp(t)) if over(t));
        // Several at once, since the search is long.
        let ids: Vec<SocketId> =
            self.connections.values().filter(waits).take(64).copied().collect();
        for id in &ids {
            self.with_tcp(*id, |tcp, _| tcp.fail(None));
            self.collect(*id);
        }
        !ids.is_empty()
    }

    /// Looks after a connection whose state may have changed.
    fn after_change(&mut self, id: SocketId) {
        let memory = self.egress.memory;
        let Some(Socket::Tcp(tcp)) = self.socket_mut(id) else { return };
        let readiness = tcp.readiness(memory);
        if core::mem::take(&mut tcp.news) || readiness != tcp.shown {
            tcp.shown = readiness;
            self.mark_event(id);
        }
        self.mark_dirty(id);
        self.collect(id);
    }

    /// Frees a connection that has ended and that nobody holds.
    fn collect(&mut self, id: SocketId) {
        let Some(Socket::Tcp(tcp)) = self.socket(id) else { return };
        if tcp.state == State::Closed {
            let (key, orphan) = (tcp.key, tcp.orphan);
            if self.connections.get(&key) == Some(&id) {
                self.connections.remove(&key);
            }
            if orphan {
                self.release(id);
            }
        }
    }

    /// The initial sequence number of RFC 6528: a clock of 4 us plus a keyed hash of the four
    /// addresses, so that it cannot be guessed from another connection's; and the offset that
    /// hides our clock from the peer (RFC 7323, 7.1).
    fn initial_numbers(&self, key: Key, now_us: u64) -> (u32, u32) {
        let hash = siphash(&self.secret, &key.to_le_bytes());
        (((now_us / 4) as u32).wrapping_add(hash as u32), (hash >> 32) as u32)
    }

    /// A number that cannot be foreseen.
    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        siphash(&self.secret, &self.drawn.to_le_bytes())
    }

    fn insert(&mut self, socket: Socket) -> SocketId {
        let index = self.free.pop().map_or(self.slots.len(), |index| index as usize);
        if index == self.slots.len() {
            self.slots.push(Slot::default());
        }
        self.slots[index].socket = Some(socket);
        SocketId { index: index as u32, generation: self.slots[index].generation }
    }

    fn release(&mut self, id: SocketId) {
        if self.socket(id).is_none() {
            return;
        }
        self.set_timer(id, None);
        let slot = &mut self.slots[id.index as usize];
        self.egress.memory -= match &slot.socket {
            Some(Socket::Tcp(tcp)) => tcp.memory(),
            Some(Socket::Udp(udp)) => udp.held,
            _ => 0,
        };
        *slot = Slot { generation: slot.generation.wrapping_add(1), ..Slot::default() };
        self.free.push(id.index);
    }

    fn socket(&self, id: SocketId) -> Option<&Socket> {
        let slot = self.slots.get(id.index as usize)?;
        slot.socket.as_ref().filter(|_| slot.generation == id.generation)
    }

    fn socket_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.socket.as_mut().filter(|_| slot.generation == id.generation)
    }

    /// Runs `change` on a connection and keeps its timer and the sum of held bytes right.
    fn with_tcp<T>(
        &mut self,
        id: SocketId,
        change: impl FnOnce(&mut Tcp, &mut Egress) -> T,
    ) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        let Some(Socket::Tcp(tcp)) = &mut slot.socket else { return None };
        if slot.generation != id.generation {
            return None;
        }
        let before = tcp.memory();
        let result = change(tcp, &mut self.egress);
        if self.egress.memory > MEMORY_LEAN {
            tcp.trim();
        }
        self.egress.memory = self.egress.memory + tcp.memory() - before;
        let due = tcp.deadline();
        if due.is_some_and(|due| slot.timer.is_none_or(|timer| due < timer)) {
            self.set_timer(id, due);
        }
        Some(result)
    }

    fn set_timer(&mut self, id: SocketId, due: Option<u64>) {
        let timer = &mut self.slots[id.index as usize].timer;
        if let Some(old) = core::mem::replace(timer, due) {
            self.timers.remove(&(old, id));
        }
        if let Some(due) = due {
            self.timers.insert((due, id));
        }
    }

    fn mark_dirty(&mut self, id: SocketId) {
        let live = self.socket(id).is_some();
        if live && !core::mem::replace(&mut self.slots[id.index as usize].dirty, true) {
            self.dirty.push_back(id);
        }
    }

    fn mark_event(&mut self, id: SocketId) {
        let live = self.socket(id).is_some();
        if live && !core::mem::replace(&mut self.slots[id.index as usize].event, true) {
            self.events.push_back(id);
        }
    }

    /// A socket whose readiness may have changed since it was last named.
    pub fn take_event(&mut self) -> Option<SocketId> {
        let id = self.events.pop_front()?;
        if self.socket(id).is_some() {
            self.slots[id.index as usize].event = false;
        }
        Some(id)
    }

    /// The lease, once after each change of it.
    pub fn take_lease_change(&mut self) -> Option<Option<Lease>> {
        core::mem::take(&mut self.lease_changed).then(|| self.egress.lease.clone())
    }

    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.statistics;
        statistics.connections = self.connections.len() - self.handshakes_open;
        statistics.handshakes = self.handshakes_open;
        statistics.sockets = self.slots.len() - self.free.len() - self.handshakes_open;
        statistics.memory = self.egress.memory;
        statistics.segments_resent = self.egress.resent;
        statistics
    }

    /// Makes a socket.
    pub fn open(&mut self, kind: Kind) -> Result<SocketId, Error> {
        let held = self.slots.len() - self.free.len() - self.handshakes_open;
        if held >= 2 * MAX_CONNECTIONS {
            return Err(Error::ENOBUFS);
        }
        Ok(self.insert(match kind {
            Kind::Stream => Socket::Fresh(Fresh::default()),
            Kind::Datagram => Socket::Udp(Udp::default()),
        }))
    }

    /// Gives the socket its local address; port 0 chooses one.
    pub fn bind(&mut self, id: SocketId, address: SocketAddrV4) -> Result<(), Error> {
        let ip = *address.ip();
        if !ip.is_unspecified() && !self.egress.is_local(ip) {
            return Err(Error::EADDRNOTAVAIL);
        }
        let datagram = matches!(self.socket(id), Some(Socket::Udp(_)));
        let port = match address.port() {
            0 => self.choose_port(datagram)?,
            port if datagram && self.datagrams.contains_key(&port) => {
                return Err(Error::EADDRINUSE)
            }
            port if !datagram && self.stream_port_taken(port) => return Err(Error::EADDRINUSE),
            port => port,
        };
        let chosen = SocketAddrV4::new(ip, port);
        match self.socket_mut(id) {
            Some(Socket::Fresh(Fresh { local: local @ None, .. })) => *local = Some(chosen),
            Some(Socket::Udp(Udp { local: local @ None, .. })) => {
                *local = Some(chosen);
                self.datagrams.insert(port, id);
            }
            _ => return Err(Error::EINVAL),
        }
        Ok(())
    }

    fn bind_datagram(&mut self, id: SocketId) -> Result<(), Error> {
        match self.socket(id) {
            Some(Socket::Udp(Udp { local: None, .. })) => {
                self.bind(id, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))
            }
            _ => Ok(()),
        }
    }

    fn stream_port_taken(&self, port: u16) -> bool {
        self.listeners.contains_key(&port)
            || self.slots.iter().any(|slot| {
                matches!(&slot.socket, Some(Socket::Fresh(Fresh { local: Some(local), .. }))
                    if local.port() == port)
            })
    }

    /// A free port from a start that cannot be foreseen (RFC 6056, 3.3.1).
    fn choose_port(&mut self, datagram: bool) -> Result<u16, Error> {
        let count = u64::from(u16::MAX - EPHEMERAL_FIRST) + 1;
        let start = self.draw() % count;
        for i in 0..count {
            let port = EPHEMERAL_FIRST + ((start + i) % count) as u16;
            let first = Key::from(port) << 112;
            let mut used = self.connections.range(first..=first | (Key::MAX >> 16));
            let free = match datagram {
                true => !self.datagrams.contains_key(&port),
                false => used.next().is_none() && !self.stream_port_taken(port),
            };
            if free {
                return Ok(port);
            }
        }
        Err(Error::EADDRINUSE)
    }

    pub fn listen(&mut self, id: SocketId, backlog: usize) -> Result<(), Error> {
        let backlog = backlog.clamp(1, MAX_BACKLOG);
        let local = match self.socket_mut(id) {
            Some(Socket::Listener(listener)) => {
                listener.backlog = backlog;
                return Ok(());
            }
            Some(Socket::Fresh(fresh)) => fresh.local,
            _ => return Err(Error::EOPNOTSUPP),
        };
        let any = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let local = local.map_or_else(|| self.choose_port(false).map(any), Ok)?;
        let listener = Listener { local, backlog, waiting: VecDeque::new() };
        self.listeners.insert(local.port(), id);
        self.slots[id.index as usize].socket = Some(Socket::Listener(listener));
        Ok(())
    }

    pub fn accept(&mut self, id: SocketId) -> Result<(SocketId, SocketAddrV4), Error> {
        let Some(Socket::Listener(listener)) = self.socket_mut(id) else {
            return Err(Error::EINVAL);
        };
        let accepted = listener.waiting.pop_front().ok_or(Error::EAGAIN)?;
        let peer = match self.socket(accepted) {
            Some(Socket::Tcp(tcp)) => remote_of(tcp.key),
            _ => return Err(Error::EINVAL),
        };
        Ok((accepted, peer))
    }

    /// Begins to connect a stream (`EINPROGRESS`: wait for `writable`, then `take_error`), or
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
        let source = self.egress.source_for(*remote.ip()).ok_or(Error::ENETUNREACH)?;
        let (bound, no_delay, keep_alive) = match self.socket(id) {
            Some(Socket::Fresh(f)) => (f.local, f.no_delay, f.keep_alive),
            Some(Socket::Udp(_)) => {
                self.bind_datagram(id)?;
                if let Some(Socket::Udp(udp)) = self.socket_mut(id) {
                    udp.remote = Some(remote);
                    let port = udp.local.map_or(0, |l| l.port());
                    udp.local = Some(SocketAddrV4::new(source, port));
                }
                return Ok(());
            }
            Some(Socket::Tcp(tcp)) if tcp.state == State::SynSent => {
                return Err(Error::EINPROGRESS)
            }
            Some(Socket::Tcp(tcp)) => return Err(tcp.error.unwrap_or(Error::EISCONN)),
            _ => return Err(Error::EINVAL),
        };
        if remote.port() == 0 || !self.make_room() {
            return Err(Error::EADDRNOTAVAIL);
        }
        let port = bound.map_or_else(|| self.choose_port(false), |local| Ok(local.port()))?;
        let ip = bound.map(|l| *l.ip()).filter(|ip| !ip.is_unspecified()).unwrap_or(source);
        let local = SocketAddrV4::new(ip, port);
        let key = key_of(local, remote);
        if self.connections.contains_key(&key) {
            return Err(Error::EADDRINUSE);
        }
        let numbers = self.initial_numbers(key, now_us);
        let mut tcp = Tcp::new(key, numbers, self.egress.mtu, now_us);
        tcp.no_delay = no_delay;
        tcp.keep_alive = keep_alive;
        self.connections.insert(key, id);
        self.slots[id.index as usize].socket = Some(Socket::Tcp(Box::new(tcp)));
        self.mark_dirty(id);
        Err(Error::EINPROGRESS)
    }

    /// Takes what fits of `data` into the send buffer.
    pub fn send(&mut self, id: SocketId, data: &[u8]) -> Result<usize, Error> {
        let result = self.with_tcp(id, |tcp, egress| tcp.write(data, egress.memory));
        self.mark_dirty(id);
        result.unwrap_or_else(|| match self.socket(id) {
            // Datagrams go by `send_to`, which knows the time.
            Some(Socket::Udp(Udp { remote: Some(_), .. })) | None => Err(Error::EINVAL),
            Some(_) => Err(Error::ENOTCONN),
        })
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
            return Err(Error::EMSGSIZE);
        }
        self.bind_datagram(id)?;
        let Some(Socket::Udp(udp)) = self.socket(id) else { return Err(Error::EINVAL) };
        let target = target.or(udp.remote).ok_or(Error::ENOTCONN)?;
        let port = udp.local.map_or(0, |l| l.port());
        let source = self.egress.source_for(*target.ip()).ok_or(Error::ENETUNREACH)?;
        match self.egress.send_udp(SocketAddrV4::new(source, port), target, data, now_us) {
            true => Ok(data.len()),
            false => Err(Error::ENETUNREACH),
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
        if let Some(result) = self.with_tcp(id, |tcp, egress| tcp.read(out, peek, egress.memory)) {
            self.mark_dirty(id);
            return result.map(|taken| (taken, None));
        }
        match self.socket_mut(id) {
            Some(Socket::Udp(udp)) => {
                let Some((from, data)) = udp.received.front() else {
                    return match udp.error.take() {
                        Some(error) => Err(error),
                        None if udp.closed => Ok((0, None)),
                        None => Err(Error::EAGAIN),
                    };
                };
                let (from, taken) = (*from, data.len().min(out.len()));
                out[..taken].copy_from_slice(&data[..taken]);
                if !peek {
                    let held = data.len();
                    udp.received.pop_front();
                    udp.held -= held;
                    self.egress.memory -= held;
                }
                Ok((taken, Some(from)))
            }
            Some(_) => Err(Error::ENOTCONN),
            None => Err(Error::EINVAL),
        }
    }

    pub fn shutdown(&mut self, id: SocketId, how: Shutdown) -> Result<(), Error> {
        match self.socket_mut(id) {
            Some(Socket::Tcp(tcp)) if tcp.state != State::Closed => {
                self.with_tcp(id, |tcp, _| {
                    tcp.read_shut |= how != Shutdown::Write;
                    if how != Shutdown::Read {
                        tcp.finish();
                    }
                });
                self.after_change(id);
                Ok(())
            }
            Some(Socket::Udp(udp)) if udp.remote.is_some() => {
                udp.closed = how != Shutdown::Write;
                self.mark_event(id);
                Ok(())
            }
            Some(Socket::Listener(_)) if how != Shutdown::Write => Ok(()),
            Some(_) => Err(Error::ENOTCONN),
            None => Err(Error::EINVAL),
        }
    }

    /// Gives the socket up. A connection goes on by itself until its end is settled.
    pub fn close(&mut self, id: SocketId, now_us: u64) {
        match self.socket_mut(id) {
            Some(Socket::Tcp(_)) => {
                self.with_tcp(id, |tcp, egress| tcp.orphan(egress, now_us));
                self.mark_dirty(id);
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
            Some(Socket::Handshake(_)) | None => {}
        }
    }

    pub fn readiness(&self, id: SocketId) -> Readiness {
        match self.socket(id) {
            Some(Socket::Tcp(tcp)) => tcp.readiness(self.egress.memory),
            Some(Socket::Listener(listener)) => {
                Readiness { readable: !listener.waiting.is_empty(), ..Readiness::default() }
            }
            Some(Socket::Udp(udp)) => udp.readiness(),
            // Linux says so of a stream that was never connected.
            Some(Socket::Fresh(_)) => {
                Readiness { writable: true, hung_up: true, ..Readiness::default() }
            }
            Some(Socket::Handshake(_)) | None => Readiness::default(),
        }
    }

    /// The waiting error, once.
    pub fn take_error(&mut self, id: SocketId) -> Option<Error> {
        match self.socket_mut(id) {
            Some(Socket::Tcp(tcp)) => tcp.error.take(),
            Some(Socket::Udp(udp)) => udp.error.take(),
            _ => None,
        }
    }

    pub fn local_address(&self, id: SocketId) -> Option<SocketAddrV4> {
        match self.socket(id)? {
            Socket::Tcp(tcp) => Some(local_of(tcp.key)),
            Socket::Listener(listener) => Some(listener.local),
            Socket::Fresh(fresh) => fresh.local,
            Socket::Udp(udp) => udp.local,
            Socket::Handshake(_) => None,
        }
    }

    pub fn peer_address(&self, id: SocketId) -> Option<SocketAddrV4> {
        match self.socket(id)? {
            Socket::Tcp(t) if !matches!(t.state, State::SynSent | State::Closed) => {
                Some(remote_of(t.key))
            }
            Socket::Udp(udp) => udp.remote,
            _ => None,
        }
    }

    pub fn is_listening(&self, id: SocketId) -> bool {
        matches!(self.socket(id), Some(Socket::Listener(_)))
    }

    pub fn set_option(&mut self, id: SocketId, option: SocketOption) -> Result<(), Error> {
        match (self.socket_mut(id).ok_or(Error::EINVAL)?, option) {
            (Socket::Tcp(tcp), SocketOption::NoDelay(on)) => tcp.no_delay = on,
            (Socket::Tcp(_), SocketOption::KeepAlive(on)) => {
                self.with_tcp(id, |tcp, _| tcp.keep_alive = on);
            }
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
            Some(Socket::Tcp(tcp)) => tcp.ready,
            Some(Socket::Udp(udp)) => udp.received.front().map_or(0, |(_, data)| data.len()),
            _ => 0,
        }
    }
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) of `data` under the first half of `key`.
#[allow(deprecated)] // The library advises against it for hash tables; as a keyed hash it stands.
fn siphash(key: &[u8; 32], data: &[u8]) -> u64 {
    let word = |at| u64::from(be32(key, at)) << 32 | u64::from(be32(key, at + 4));
    let mut hasher = core::hash::SipHasher::new_with_keys(word(0), word(8));
    hasher.write(data);
    hasher.finish()
}
