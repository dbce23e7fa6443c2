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

mod calls;

struct Listener {
    local: SocketAddrV4,
    backlog: usize,
    waiting: VecDeque<(SocketId, SocketAddrV4)>,
}

#[derive(Default)]
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
    /// Who holds each port of TCP (bound or listening) and of UDP: by protocol and number.
    ports: BTreeMap<(u8, u16), SocketId>,
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
        while let Some(&(_, id)) = self.timers.first().filter(|(due, _)| *due <= now_us) {
            self.set_timer(id, None);
            self.with_tcp(id, |tcp, egress| tcp.poll(egress, now_us));
        }
        self.run_loopback(now_us);
    }

    fn run_loopback(&mut self, now_us: u64) {
        // Bounded: each packet can answer with more, and the rest waits for the next call.
        for _ in 0..MAX_TRANSMIT_QUEUE {
            self.flush(now_us);
            let Some(frame) = self.egress.loopback.pop_front() else { break };
            self.receive_ipv4(&frame[ETHERNET_HEADER..], false, now_us);
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
            let more = self.with_tcp(id, |tcp, egress| tcp.flush(egress, now_us)) == Some(true);
            if self.socket(id).is_some() {
                self.slots[id.index as usize].dirty = false;
            }
            if more {
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
            Some(TYPE_IPV4) => self.receive_ipv4(&frame[ETHERNET_HEADER..], true, now_us),
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

    fn receive_ipv4(&mut self, data: &[u8], outside: bool, now_us: u64) {
        let Some(packet) = parse_ipv4(data) else { return self.drop_frame() };
        let asking = self.egress.lease.is_none() && packet.protocol == PROTO_UDP;
        let source = packet.source;
        // Nobody outside has our own addresses (RFC 1122, 3.2.1.3).
        let forged = self.egress.is_local(source) || packet.target.is_loopback();
        if (outside && forged)
            || !(asking || self.egress.is_for_us(packet.target))
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
            self.with_tcp(id, |tcp, _| tcp.on_unreachable(seq, code, mtu));
        } else if quote[9] == PROTO_UDP && code != 4 {
            let Some(&id) = self.ports.get(&(PROTO_UDP, local.port())) else { return };
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
        let Some(&id) = self.ports.get(&(PROTO_UDP, target_port)) else {
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
        }
    }

    fn receive_tcp(&mut self, packet: &Packet, now_us: u64) {
        let Some(segment) = parse_tcp(packet) else { return self.drop_frame() };
        let local = SocketAddrV4::new(packet.target, segment.target_port);
        let remote = SocketAddrV4::new(packet.source, segment.source_port);
        let key = key_of(local, remote);
        let is_syn = segment.flags & (SYN | ACK | RST | FIN) == SYN;
        let mut above = None;
        if let Some((id, tcp)) = self.connection(key) {
            above = tcp.may_be_replaced(&segment).filter(|_| is_syn);
            let anew = is_syn && tcp.listener.is_some() && !tcp.is_answer_to(&segment);
            if above.is_none() && !anew {
                let listener = tcp.listener.filter(|_| segment.flags & (RST | ACK) == ACK);
                if listener.is_none_or(|listener| self.may_open(id, listener, now_us)) {
                    self.receive_segment(id, &segment, now_us);
                }
                return;
            }
            self.with_tcp(id, |tcp, _| tcp.fail(None));
        }
        let here = |id: &SocketId| {
            matches!(self.socket(*id), Some(Socket::Listener(l))
                if is_syn && (l.local.ip().is_unspecified() || l.local.ip() == local.ip()))
        };
        let listener = self.ports.get(&(PROTO_TCP, local.port())).copied().filter(here);
        if listener.is_none() {
            return send_reset(&mut self.egress, key, &segment, now_us);
        }
        // Answers to a flood leave most of the way out to others.
        if self.egress.queue.len() > MAX_TRANSMIT_QUEUE / 4 || remote.port() == 0 {
            return;
        }
        if self.handshakes.len() >= MAX_HANDSHAKES {
            if let Some(oldest) = self.handshakes.pop_front() {
                self.with_tcp(oldest, |tcp, _| tcp.listener.map(|_| tcp.fail(None)));
            }
        }
        if self.slots.len() - self.free.len() >= MAX_SOCKETS {
            return;
        }
        let mut numbers = self.initial_numbers(key, now_us);
        if above.is_some_and(|above| !after(numbers.0, above)) {
            numbers.0 = above.unwrap_or(0).wrapping_add(0x1_0000);
        }
        let mut tcp = Tcp::new(key, numbers, self.egress.mtu, now_us).passive(&segment, now_us);
        tcp.listener = listener;
        let id = self.insert(Socket::Tcp(Box::new(tcp)));
        self.connections.insert(key, id);
        self.handshakes.push_back(id);
        self.handshakes_open += 1;
        self.with_tcp(id, |tcp, egress| tcp.flush(egress, now_us));
    }

    fn connection(&self, key: Key) -> Option<(SocketId, &Tcp)> {
        let id = *self.connections.get(&key)?;
        match self.socket(id)? {
            Socket::Tcp(tcp) => Some((id, tcp)),
            _ => None,
        }
    }

    /// Whether the peer's answer to our half of a handshake is taken. Where it is dropped, our
    /// half goes again, and the peer's with it.
    fn may_open(&mut self, id: SocketId, listener: SocketId, now_us: u64) -> bool {
        let Some(Socket::Listener(listener)) = self.socket(listener) else {
            self.with_tcp(id, |tcp, egress| tcp.abort(egress, now_us));
            return false;
        };
        listener.waiting.len() < listener.backlog && self.make_room()
    }

    /// Gives a segment to its connection, which may by it come to wait for `accept`.
    fn receive_segment(&mut self, id: SocketId, segment: &Segment, now_us: u64) {
        let opened = self.with_tcp(id, |tcp, egress| {
            tcp.on_segment(egress, segment, now_us);
            let open = !matches!(tcp.state, State::SynReceived | State::Closed);
            tcp.listener.take_if(|_| open).map(|listener| (listener, remote_of(tcp.key)))
        });
        if let Some((listener_id, remote)) = opened.flatten() {
            self.handshakes_open -= 1;
            if let Some(Socket::Listener(listener)) = self.socket_mut(listener_id) {
                listener.waiting.push_back((id, remote));
                self.mark_event(listener_id);
            }
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
        }
        !ids.is_empty()
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
        self.free_port(id);
        let slot = &mut self.slots[id.index as usize];
        self.egress.memory -= match &slot.socket {
            Some(Socket::Tcp(tcp)) => {
                self.handshakes_open -= usize::from(tcp.listener.is_some());
                tcp.memory()
            }
            Some(Socket::Udp(udp)) => udp.held,
            _ => 0,
        };
        *slot = Slot { generation: slot.generation.wrapping_add(1), ..Slot::default() };
        self.free.push(id.index);
    }

    fn free_port(&mut self, id: SocketId) {
        let protocol = match self.socket(id) {
            Some(Socket::Udp(_)) => PROTO_UDP,
            _ => PROTO_TCP,
        };
        let port = self.local_address(id).map_or(0, |local| local.port());
        if self.ports.get(&(protocol, port)) == Some(&id) {
            self.ports.remove(&(protocol, port));
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

    /// Runs `change` on a connection, keeps its timer and the sum of held bytes right, tells of
    /// its readiness, and frees it where it has ended and nobody holds it.
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
        let readiness = tcp.readiness(self.egress.memory);
        let told = !core::mem::take(&mut tcp.news) && readiness == tcp.shown;
        tcp.shown = readiness;
        let (key, ended) = (tcp.key, tcp.state == State::Closed);
        let nobodys = tcp.orphan || tcp.listener.is_some();
        let due = tcp.deadline();
        if due.is_some_and(|due| slot.timer.is_none_or(|timer| due < timer)) {
            self.set_timer(id, due);
        }
        if !told {
            self.mark_event(id);
        }
        self.mark_dirty(id);
        if ended && self.connections.get(&key) == Some(&id) {
            self.connections.remove(&key);
        }
        if ended && nobodys {
            self.release(id);
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
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) of `data` under the first half of `key`.
#[allow(deprecated)] // The library advises against it for hash tables; as a keyed hash it stands.
fn siphash(key: &[u8; 32], data: &[u8]) -> u64 {
    let word = |at| u64::from(be32(key, at)) << 32 | u64::from(be32(key, at + 4));
    let mut hasher = core::hash::SipHasher::new_with_keys(word(0), word(8));
    hasher.write(data);
    hasher.finish()
}
