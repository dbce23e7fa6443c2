//! One TCP connection (RFC 9293): its states, windows, acknowledgements and timers.
//!
//! What was sent and when is kept by `recovery`, which also finds losses and sets the pace.

use crate::buffer::Buffer;
use crate::egress::Egress;
use crate::recovery::Recovery;
use crate::wire::*;
use crate::*;
use alloc::vec::Vec;

mod receive;

pub const RTO_MIN_US: u64 = 200_000;
pub const RTO_INITIAL_US: u64 = 1_000_000;
pub const RTO_MAX_US: u64 = 60_000_000;
const DELAYED_ACK_US: u64 = 40_000;
/// Twice the longest time that a segment is taken to live; Linux's figure.
const TIME_WAIT_US: u64 = 60_000_000;
/// A connection that nobody holds any more may go without progress for this long.
const ORPHAN_US: u64 = 60_000_000;
/// Resendings of one segment, about three minutes: then the connection is given up.
const MAX_RESENDS: u32 = 12;
/// Resendings of a SYN or of its answer.
pub const MAX_SYN_RESENDS: u32 = 5;
/// Between two challenge acknowledgements of one connection. The limit is per connection: a
/// shared one would let a stranger count what others caused (RFC 5961's errata).
const CHALLENGE_US: u64 = 500_000;
const KEEP_ALIVE_US: u64 = KEEP_ALIVE_S * 1_000_000;
/// Our shift of the window: 512 KiB fit in 16 bits shifted by 4.
const WINDOW_SHIFT: u8 = 4;
/// Ranges received past a hole: more holes than this within one window are not kept.
pub const MAX_ISLANDS: usize = 64;
/// After this time without a segment the peer's clock may have turned (RFC 7323, 5.5).
const STAMP_AGE_US: u64 = 24 * 86_400 * 1_000_000;
/// A smaller packet size than IPv4's least, told by a router, is not believed.
const PATH_MTU_MIN: usize = 576;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
    Closed,
}

pub fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// Local port and address, remote address and port of a connection, in this order.
pub type Key = u128;

pub fn key_of(local: SocketAddrV4, remote: SocketAddrV4) -> Key {
    let ends = u128::from(u32::from(*local.ip())) << 80 | u128::from(u32::from(*remote.ip())) << 48;
    u128::from(local.port()) << 112 | ends | u128::from(remote.port()) << 32
}

pub fn local_of(key: Key) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from((key >> 80) as u32), (key >> 112) as u16)
}

pub fn remote_of(key: Key) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from((key >> 48) as u32), (key >> 32) as u16)
}

#[derive(Default)]
pub struct Tcp {
    pub state: State,
    pub key: Key,
    /// No holder is left: the connection ends by itself.
    pub orphan: bool,
    /// The listener for which a handshake is under way.
    pub listener: Option<SocketId>,
    pub error: Option<Error>,
    pub no_delay: bool,
    pub keep_alive: bool,
    pub read_shut: bool,
    /// What the holder was last told, and whether data came since.
    pub shown: Readiness,
    pub news: bool,
    transmit: Buffer,
    /// From the first unread byte; what lies past `ready` is known by `islands`.
    receive: Buffer,
    pub ready: usize,
    /// Received ranges past a hole, that of the latest segment first, disjoint.
    islands: Vec<(u32, u32)>,
    /// A range that came twice, to be told once (RFC 2883).
    duplicate: Option<(u32, u32)>,
    /// The FIN follows the last byte of `transmit`.
    fin_wanted: bool,
    fin_sent: bool,
    /// Where the peer's FIN stands, once it was seen.
    fin_at: Option<u32>,
    fin_received: bool,
    syn_due: bool,
    recovery: Recovery,
    snd_wnd: u32,
    /// The largest window the peer ever offered.
    snd_wnd_max: u32,
    snd_wl1: u32,
    snd_wl2: u32,
    snd_shift: u8,
    rcv_nxt: u32,
    rcv_shift: u8,
    /// The right edge of the window that the peer was told of; it never moves back.
    rcv_edge: u32,
    /// The largest segment the peer takes, its options included.
    mss: usize,
    own_mss: u16,
    sack: bool,
    stamps: bool,
    stamp_offset: u32,
    /// The peer's clock, when it was taken, and what was acknowledged last (RFC 7323, 4.3).
    stamp_recent: u32,
    stamp_us: u64,
    acked: u32,
    resends: u32,
    rto_at: Option<u64>,
    probe_at: Option<u64>,
    ack_at: Option<u64>,
    ack_now: bool,
    segments_unacked: u32,
    end_at: Option<u64>,
    heard_us: u64,
    probes: u32,
    probed_us: u64,
    challenge_at: u64,
    syn_us: u64,
}

impl Tcp {
    /// `numbers`: our initial sequence number and the offset of our clock.
    pub fn new(key: Key, numbers: (u32, u32), mtu: usize, now: u64) -> Tcp {
        let own_mss = (mtu - IPV4_HEADER - TCP_HEADER) as u16;
        Tcp {
            key,
            syn_due: true,
            recovery: Recovery::new(numbers.0),
            rcv_shift: WINDOW_SHIFT,
            mss: 536,
            own_mss,
            sack: true,
            stamps: true,
            stamp_offset: numbers.1,
            stamp_us: now,
            heard_us: now,
            syn_us: now,
            ..Tcp::default()
        }
    }

    /// Makes the connection that answers `syn`.
    pub fn passive(mut self, syn: &Segment, now: u64) -> Tcp {
        self.state = State::SynReceived;
        self.take_syn(syn, now);
        self
    }

    fn take_syn(&mut self, syn: &Segment, now: u64) {
        self.rcv_nxt = syn.seq.wrapping_add(1);
        self.rcv_edge = self.rcv_nxt;
        self.acked = self.rcv_nxt;
        self.mss = usize::from(syn.options.mss.unwrap_or(536).clamp(64, self.own_mss));
        self.snd_shift = syn.options.window_scale.unwrap_or(0);
        if syn.options.window_scale.is_none() {
            self.rcv_shift = 0;
        }
        self.sack &= syn.options.sack_permitted;
        self.stamps &= syn.options.timestamps.is_some();
        if let Some((value, _)) = syn.options.timestamps {
            (self.stamp_recent, self.stamp_us) = (value, now);
        }
        self.recovery.begin(self.payload_size(), self.sack);
        self.snd_wnd = u32::from(syn.window);
        self.snd_wnd_max = self.snd_wnd;
        self.snd_wl1 = syn.seq;
        self.snd_wl2 = syn.ack;
    }

    fn payload_size(&self) -> usize {
        self.mss - if self.stamps { 12 } else { 0 }
    }

    fn stamp(&self, now: u64) -> u32 {
        ((now / 1000) as u32).wrapping_add(self.stamp_offset)
    }

    /// The room that the buffers hold.
    pub fn memory(&self) -> usize {
        self.transmit.capacity() + self.receive.capacity()
    }

    pub fn trim(&mut self) {
        self.transmit.trim();
        self.receive.trim();
    }

    pub fn deadline(&self) -> Option<u64> {
        let keep_alive = self.keep_alive_at();
        let reorder = self.recovery.reorder_at;
        let timers = [self.rto_at, self.probe_at, reorder, self.ack_at, self.end_at, keep_alive];
        timers.into_iter().flatten().min()
    }

    /// When an idle connection is probed next. What was heard before the socket asked for it
    /// counts too, but there is one probe at a time.
    fn keep_alive_at(&self) -> Option<u64> {
        let wanted = self.keep_alive && self.state == State::Established;
        wanted.then(|| self.heard_us.max(self.probed_us) + KEEP_ALIVE_US)
    }

    fn can_send(&self) -> bool {
        matches!(self.state, State::Established | State::CloseWait) && !self.fin_wanted
    }

    fn is_open(&self) -> bool {
        !matches!(self.state, State::SynSent | State::SynReceived)
    }

    pub fn readiness(&self, memory: usize) -> Readiness {
        let ended = self.fin_received || self.state == State::Closed;
        let limit = self.transmit.limit(SEND_BUFFER, memory);
        let room = self.transmit.len() < limit * 2 / 3;
        Readiness {
            readable: self.ready > 0
                || (self.is_open() && (ended || self.read_shut))
                || self.error.is_some(),
            writable: (self.is_open() && (room || !self.can_send())) || self.error.is_some(),
            read_closed: ended || self.read_shut,
            hung_up: self.state == State::Closed
                || (self.fin_received && self.fin_wanted)
                || self.state == State::TimeWait,
            error: self.error.is_some(),
        }
    }

    /// Takes what fits of `data` to be sent.
    pub fn write(&mut self, data: &[u8], memory: usize) -> Result<usize, Error> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if !self.is_open() {
            return Err(Error::EAGAIN);
        }
        if !self.can_send() {
            return Err(Error::EPIPE);
        }
        let limit = self.transmit.limit(SEND_BUFFER, memory);
        let taken = data.len().min(limit.saturating_sub(self.transmit.len()));
        if taken == 0 && !data.is_empty() {
            self.shown.writable = false;
            return Err(Error::EAGAIN);
        }
        self.transmit.write(self.transmit.len(), &data[..taken], limit);
        self.shown = self.readiness(memory);
        Ok(taken)
    }

    /// Takes received bytes; 0 is the peer's end.
    pub fn read(&mut self, out: &mut [u8], peek: bool, memory: usize) -> Result<usize, Error> {
        let taken = self.ready.min(out.len());
        if taken == 0 && !(out.is_empty() && self.ready > 0) {
            if let Some(error) = self.error.take() {
                return Err(error);
            }
            let ended = self.readiness(memory).read_closed && self.is_open();
            return if ended { Ok(0) } else { Err(Error::EAGAIN) };
        }
        let (a, b) = self.receive.slices(0, taken);
        out[..a.len()].copy_from_slice(a);
        out[a.len()..taken].copy_from_slice(b);
        if !peek {
            self.receive.consume(taken);
            self.ready -= taken;
            // Tells the peer when the window grew by two segments and was getting short.
            let told = self.rcv_edge.wrapping_sub(self.rcv_nxt) as usize;
            let grown = self.window(memory) as usize - told;
            let over = matches!(self.state, State::Closed | State::TimeWait);
            self.ack_now |= grown >= 2 * self.mss && told < RECEIVE_BUFFER / 2 && !over;
            self.shown = self.readiness(memory);
        }
        Ok(taken)
    }

    pub fn finish(&mut self) {
        if self.fin_wanted {
            return;
        }
        match self.state {
            State::Established => self.state = State::FinWait1,
            State::SynReceived => {} // The FIN follows the handshake.
            State::CloseWait => self.state = State::LastAck,
            State::SynSent => return self.fail(None),
            _ => return,
        }
        self.fin_wanted = true;
    }

    /// The holder is gone. Unread data means that the peer must learn that it was not taken.
    pub fn orphan(&mut self, egress: &mut Egress, now: u64) {
        self.orphan = true;
        if self.ready > 0 && !self.fin_received {
            return self.abort(egress, now);
        }
        self.shut_reading();
        self.finish();
        self.end_at = self.end_at.or(Some(now + ORPHAN_US));
    }

    /// Nothing more will be read: no room is held for it while the connection comes to its end.
    fn shut_reading(&mut self) {
        self.read_shut = true;
        self.receive = Buffer::default();
        self.ready = 0;
        self.islands = Vec::new();
    }

    pub fn abort(&mut self, egress: &mut Egress, now: u64) {
        if !matches!(self.state, State::SynSent | State::Closed | State::TimeWait) {
            self.emit(egress, now, self.recovery.snd_nxt, RST | ACK, 0, 0);
        }
        self.fail(None);
    }

    pub fn fail(&mut self, error: Option<Error>) {
        self.state = State::Closed;
        self.error = self.error.or(error);
        self.end_sending();
        self.ack_at = None;
        self.end_at = None;
        self.islands = Vec::new();
        self.receive.truncate(self.ready);
    }

    fn end_sending(&mut self) {
        self.transmit = Buffer::default();
        self.recovery.clear();
        self.rto_at = None;
        self.probe_at = None;
    }

    /// The window to offer. It grows only by steps that are worth a segment (RFC 1122, 4.2.3.3).
    fn window(&self, memory: usize) -> u32 {
        let largest = self.receive.limit(RECEIVE_BUFFER, memory);
        let room = largest.saturating_sub(self.ready) as u32;
        let room = room.min(0xffff << self.rcv_shift) >> self.rcv_shift << self.rcv_shift;
        let told = self.rcv_edge.wrapping_sub(self.rcv_nxt);
        let step = self.mss.min(largest / 2) as u32;
        if room >= told.saturating_add(step) {
            room
        } else {
            told
        }
    }

    fn emit(&mut self, egress: &mut Egress, now: u64, seq: u32, flags: u8, at: usize, n: usize) {
        let syn = flags & SYN != 0;
        let window = self.window(egress.memory);
        let mut options = Options::default();
        if syn {
            options.mss = Some(self.own_mss);
            options.window_scale = (self.rcv_shift > 0).then_some(self.rcv_shift);
            options.sack_permitted = self.sack;
        }
        if self.stamps {
            options.timestamps = Some((self.stamp(now), self.stamp_recent));
        }
        let mut told = true;
        if self.sack && !syn && (self.duplicate.is_some() || !self.islands.is_empty()) {
            let room = (self.mss - n).min(MAX_OPTIONS).saturating_sub(options.length() + 4) / 8;
            let blocks = self.duplicate.iter().chain(&self.islands);
            for (i, block) in blocks.take(room.min(4)).enumerate() {
                options.sacks[i] = *block;
                options.sack_count = i + 1;
            }
            told = options.sack_count > 0;
        }
        let shown = if syn { window } else { window >> self.rcv_shift };
        self.rcv_edge = self.rcv_nxt.wrapping_add(if syn { window.min(0xffff) } else { window });
        let ack = if flags & ACK != 0 { self.rcv_nxt } else { 0 };
        let head = Segment::new(self.key, seq, ack, flags, shown.min(0xffff) as u16, options);
        let (a, b) = self.transmit.slices(at, n);
        egress.send_tcp(self.key, &head, (a, b), now);
        if flags & ACK != 0 {
            // Received ranges that did not fit beside the data go alone, afterwards.
            self.ack_now &= !told;
            self.duplicate = self.duplicate.filter(|_| !told);
            self.ack_at = None;
            self.segments_unacked = 0;
            self.acked = self.rcv_nxt;
        }
    }

    /// Sends what the windows allow, then a bare acknowledgement where one is due. True where
    /// the way out is full and more waits.
    pub fn flush(&mut self, egress: &mut Egress, now: u64) -> bool {
        let more = match self.state {
            State::Closed => return false,
            State::SynSent => self.send_syn(egress, now, SYN),
            State::SynReceived => self.send_syn(egress, now, SYN | ACK),
            _ => self.send_data(egress, now),
        };
        if self.ack_now && self.state != State::SynSent {
            self.emit(egress, now, self.recovery.snd_nxt, ACK, 0, 0);
        }
        more
    }

    fn send_syn(&mut self, egress: &mut Egress, now: u64, flags: u8) -> bool {
        if self.syn_due {
            self.syn_due = false;
            self.emit(egress, now, self.recovery.snd_una, flags, 0, 0);
            self.recovery.snd_nxt = self.recovery.snd_una.wrapping_add(1);
            self.rto_at = Some(now + self.recovery.rto_us);
        }
        false
    }

    fn send_data(&mut self, egress: &mut Egress, now: u64) -> bool {
        let mut sent = false;
        let full = loop {
            if !egress.has_room() {
                break true;
            }
            if let Some(index) = self.recovery.next_lost(self.payload_size()) {
                self.resend(egress, index, now);
                sent = true;
            } else if self.send_new(egress, now) {
                sent = true;
            } else {
                break false;
            }
        };
        if sent {
            self.arm_probe(now);
        }
        // The same timer asks for a closed window again.
        if self.rto_at.is_none() && (!self.transmit.is_empty() || self.recovery.in_flight() > 0) {
            self.rto_at = Some(now + self.recovery.rto_us);
        }
        full
    }

    /// Sends the next new segment where windows, Nagle and the list of what is under way allow.
    fn send_new(&mut self, egress: &mut Egress, now: u64) -> bool {
        let flight = self.recovery.in_flight();
        let unsent = self.transmit.len().saturating_sub(flight);
        let want = unsent.min(self.payload_size());
        let open = (self.snd_wnd as usize).saturating_sub(flight);
        let size = want.min(open);
        let last = size == unsent;
        let fin = self.fin_wanted && !self.fin_sent && last;
        if (size == 0 && !fin) || !self.recovery.allows(size, self.transmit.capacity()) {
            return false;
        }
        // A part of a segment waits for the window to open (RFC 9293, 3.8.6.2.1), a small last
        // piece for the acknowledgement of what is under way (Nagle).
        let cut = size < want && size < self.snd_wnd_max as usize / 2;
        let small = last && size < self.payload_size() && !self.no_delay && !self.fin_wanted;
        if flight > 0 && (cut || small) {
            return false;
        }
        self.send_range(egress, flight, size, fin, now);
        true
    }

    fn send_range(&mut self, egress: &mut Egress, at: usize, size: usize, fin: bool, now: u64) {
        let last = at + size == self.transmit.len();
        let flags = ACK | if last { PSH } else { 0 } | if fin { FIN } else { 0 };
        self.emit(egress, now, self.recovery.snd_nxt, flags, at, size);
        self.recovery.sent(size as u32, fin, now);
        self.fin_sent |= fin;
        self.rto_at = self.rto_at.or(Some(now + self.recovery.rto_us));
    }

    fn resend(&mut self, egress: &mut Egress, index: usize, now: u64) {
        let (start, size, fin) = self.recovery.resent(index, self.payload_size(), now);
        let at = start.wrapping_sub(self.recovery.snd_una) as usize;
        egress.resent += 1;
        self.emit(egress, now, start, if fin { ACK | FIN } else { ACK }, at, size);
        self.rto_at = Some(now + self.recovery.rto_us);
    }

    /// Sets the timer that finds the loss of the last segments before the long one does (the
    /// tail loss probe of RFC 8985, 7).
    fn arm_probe(&mut self, now: u64) {
        let at = self.recovery.probe_after().map(|pause| now + pause);
        self.probe_at = at.filter(|at| self.snd_wnd > 0 && self.rto_at.is_none_or(|rto| *at < rto));
    }

    /// Does what is due.
    pub fn poll(&mut self, egress: &mut Egress, now: u64) {
        let due = |timer: Option<u64>| timer.is_some_and(|t| t <= now);
        if due(self.end_at) {
            return self.abort(egress, now);
        }
        if due(self.ack_at) {
            self.ack_now = true;
            self.ack_at = None;
        }
        if due(self.keep_alive_at()) {
            if self.probes >= KEEP_ALIVE_PROBES {
                self.emit(egress, now, self.recovery.snd_nxt, RST | ACK, 0, 0);
                return self.fail(Some(Error::ETIMEDOUT));
            }
            self.probes += 1;
            self.probed_us = now;
            self.emit(egress, now, self.recovery.snd_una.wrapping_sub(1), ACK, 0, 0);
        }
        if due(self.recovery.reorder_at) {
            self.recovery.detect_losses(now);
        }
        if due(self.probe_at) {
            self.probe_at = None;
            if self.recovery.may_probe() {
                let new = self.send_new(egress, now);
                self.recovery.probing(!new);
                if !new {
                    self.resend(egress, self.recovery.last(), now);
                }
                self.rto_at = Some(now + self.recovery.rto_us);
            }
        }
        if due(self.rto_at) {
            self.on_timeout(egress, now);
        }
    }

    fn on_timeout(&mut self, egress: &mut Egress, now: u64) {
        self.rto_at = None;
        self.probe_at = None;
        let opening = !self.is_open();
        let closed = self.snd_wnd == 0;
        let flight = self.recovery.in_flight();
        if flight == 0 && !closed {
            return; // The way out was full; the flush that follows sends.
        }
        // A peer that answers with a closed window is waited for without end: see `on_ack`.
        self.resends += 1;
        if self.resends > if opening { MAX_SYN_RESENDS } else { MAX_RESENDS } {
            return self.fail(Some(Error::ETIMEDOUT));
        }
        self.recovery.back_off();
        if opening {
            self.syn_due = true;
            return;
        }
        if flight > 0 {
            // Losses while the window is closed say nothing about the path.
            self.recovery.on_timeout(self.resends, closed);
        } else if !self.transmit.is_empty() {
            self.send_range(egress, 0, 1, false, now); // A window probe of one byte.
        }
        self.rto_at = Some(now + self.recovery.rto_us);
    }

    /// Whether our handshake answers this very SYN.
    pub fn is_answer_to(&self, syn: &Segment) -> bool {
        syn.seq.wrapping_add(1) == self.rcv_nxt
    }

    /// A new SYN may take the place of a connection that only waits out its time (RFC 9293,
    /// 3.6.1) where its number or its clock is past all that the old one received. The answer
    /// is the number that the new connection must begin above.
    pub fn may_be_replaced(&self, syn: &Segment) -> Option<u32> {
        let newer =
            syn.options.timestamps.is_some_and(|(v, _)| self.stamps && after(v, self.stamp_recent));
        (self.state == State::TimeWait && (newer || after(syn.seq, self.rcv_nxt)))
            .then_some(self.recovery.snd_nxt)
    }

    /// A router or the peer's host says that segment `seq` did not arrive (RFC 1122, 4.2.3.9).
    /// It is believed only of what is under way (RFC 5927, 4.1).
    pub fn on_unreachable(&mut self, seq: u32, code: u8, mtu: usize) {
        let flight = self.recovery.snd_nxt.wrapping_sub(self.recovery.snd_una);
        if seq.wrapping_sub(self.recovery.snd_una) >= flight {
            return;
        }
        if code == 4 {
            let mss = mtu.max(PATH_MTU_MIN) - IPV4_HEADER - TCP_HEADER;
            if mss < self.mss && self.is_open() {
                self.mss = mss;
                self.recovery.smaller(self.payload_size());
            }
        } else if self.state == State::SynSent {
            // An open connection outlives it: only the timer ends that one (RFC 5927, 5.2).
            let refused = matches!(code, 2 | 3);
            self.fail(Some(if refused { Error::ECONNREFUSED } else { Error::ENETUNREACH }));
        }
    }
}

/// The answer to a segment that belongs to no connection (RFC 9293, 3.10.7.1).
pub fn send_reset(egress: &mut Egress, key: Key, segment: &Segment, now: u64) {
    if segment.flags & RST != 0 {
        return;
    }
    let (seq, ack, flags) = match segment.flags & ACK != 0 {
        true => (segment.ack, 0, RST),
        false => (0, segment.seq.wrapping_add(segment.length()), RST | ACK),
    };
    let head = Segment::new(key, seq, ack, flags, 0, Options::default());
    egress.send_tcp(key, &head, (&[], &[]), now);
}
