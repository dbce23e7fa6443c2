//! One TCP connection (RFC 9293): its states, windows, retransmission and congestion control.
//!
//! Segments that come out of order are dropped and acknowledged again, so that the peer resends
//! them; loss is found by three duplicate acknowledgements (RFC 5681) or the timer (RFC 6298).

use crate::egress::Egress;
use crate::wire::*;
use crate::*;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

const RTO_MIN_US: u64 = 200_000;
const RTO_INITIAL_US: u64 = 1_000_000;
const RTO_MAX_US: u64 = 60_000_000;
const DELAYED_ACK_US: u64 = 40_000;
/// Twice the longest time that a segment is taken to live; Linux's figure.
const TIME_WAIT_US: u64 = 60_000_000;
/// A connection that nobody holds any more may wait this long for its peer's end.
const ORPHAN_US: u64 = 60_000_000;
/// Resendings of one segment, about three minutes: then the connection is given up.
const MAX_RESENDS: u32 = 12;
/// Resendings of a SYN or of its answer.
const MAX_SYN_RESENDS: u32 = 5;

const KEEP_ALIVE_US: u64 = KEEP_ALIVE_S * 1_000_000;
/// Our shift of the window: 512 KiB fit in 16 bits shifted by 4.
const WINDOW_SHIFT: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
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

pub struct Tcp {
    pub state: State,
    pub local: SocketAddrV4,
    pub remote: SocketAddrV4,
    /// The listener that waits for this connection's handshake.
    pub listener: Option<SocketId>,
    /// No holder is left: the connection ends by itself.
    pub orphan: bool,
    pub error: Option<Error>,
    pub no_delay: bool,
    pub keep_alive: bool,
    pub read_shut: bool,
    pub transmit: VecDeque<u8>,
    pub receive: VecDeque<u8>,
    /// The FIN follows the last byte of `transmit`.
    fin_wanted: bool,
    fin_received: bool,
    snd_una: u32,
    snd_nxt: u32,
    /// The highest sequence number ever sent.
    snd_max: u32,
    snd_wnd: u32,
    snd_wl1: u32,
    snd_wl2: u32,
    snd_shift: u8,
    rcv_nxt: u32,
    rcv_shift: u8,
    /// The right edge of the window that the peer was told of; it never moves back.
    rcv_edge: u32,
    mss: usize,
    own_mss: u16,
    congestion: usize,
    threshold: usize,
    duplicates: u32,
    recover: u32,
    in_recovery: bool,
    srtt_us: u64,
    rttvar_us: u64,
    rto_us: u64,
    timed: Option<(u32, u64)>,
    resends: u32,
    pub resent: u64,
    resend_at: Option<u64>,
    ack_at: Option<u64>,
    ack_now: bool,
    segments_unacked: u32,
    end_at: Option<u64>,
    heard_us: u64,
    probes: u32,
}

impl Tcp {
    pub fn new(local: SocketAddrV4, remote: SocketAddrV4, seq: u32, mtu: usize, now: u64) -> Tcp {
        let own_mss = (mtu - IPV4_HEADER - TCP_HEADER) as u16;
        Tcp {
            state: State::SynSent,
            local,
            remote,
            listener: None,
            orphan: false,
            error: None,
            no_delay: false,
            keep_alive: false,
            read_shut: false,
            transmit: VecDeque::new(),
            receive: VecDeque::new(),
            fin_wanted: false,
            fin_received: false,
            snd_una: seq,
            snd_nxt: seq,
            snd_max: seq,
            snd_wnd: 0,
            snd_wl1: 0,
            snd_wl2: 0,
            snd_shift: 0,
            rcv_nxt: 0,
            rcv_shift: WINDOW_SHIFT,
            rcv_edge: 0,
            mss: 536,
            own_mss,
            congestion: 10 * usize::from(own_mss),
            threshold: usize::MAX,
            duplicates: 0,
            recover: seq,
            in_recovery: false,
            srtt_us: 0,
            rttvar_us: 0,
            rto_us: RTO_INITIAL_US,
            timed: None,
            resends: 0,
            resent: 0,
            resend_at: None,
            ack_at: None,
            ack_now: false,
            segments_unacked: 0,
            end_at: None,
            heard_us: now,
            probes: 0,
        }
    }

    /// Makes the connection that answers `syn`.
    pub fn passive(mut self, syn: &Segment) -> Tcp {
        self.state = State::SynReceived;
        self.take_syn(syn);
        self.snd_wnd = u32::from(syn.window);
        self.snd_wl1 = syn.seq;
        self
    }

    fn take_syn(&mut self, syn: &Segment) {
        self.rcv_nxt = syn.seq.wrapping_add(1);
        self.rcv_edge = self.rcv_nxt;
        self.mss = usize::from(syn.mss.unwrap_or(536).clamp(64, self.own_mss));
        match syn.window_scale {
            Some(shift) => self.snd_shift = shift,
            None => self.rcv_shift = 0,
        }
    }

    pub fn memory(&self) -> usize {
        self.transmit.len() + self.receive.len()
    }

    pub fn deadline(&self) -> Option<u64> {
        let keep_alive = (self.keep_alive && self.state == State::Established)
            .then(|| self.heard_us + KEEP_ALIVE_US * u64::from(self.probes + 1));
        [self.resend_at, self.ack_at, self.end_at, keep_alive].into_iter().flatten().min()
    }

    pub fn can_send(&self) -> bool {
        matches!(self.state, State::Established | State::CloseWait) && !self.fin_wanted
    }

    pub fn readiness(&self) -> Readiness {
        let open = !matches!(self.state, State::SynSent | State::SynReceived);
        let ended = self.fin_received || self.state == State::Closed;
        Readiness {
            readable: !self.receive.is_empty()
                || (open && (ended || self.read_shut))
                || self.error.is_some(),
            writable: (open && (self.transmit.len() < SEND_BUFFER * 2 / 3 || !self.can_send()))
                || self.error.is_some(),
            read_closed: ended || self.read_shut,
            hung_up: self.state == State::Closed
                || (self.fin_received && self.fin_wanted)
                || self.state == State::TimeWait,
            error: self.error.is_some(),
        }
    }

    pub fn is_connecting(&self) -> bool {
        self.state == State::SynSent
    }

    /// Queues the FIN.
    pub fn finish(&mut self) {
        if self.fin_wanted {
            return;
        }
        match self.state {
            State::Established | State::SynReceived => self.state = State::FinWait1,
            State::CloseWait => self.state = State::LastAck,
            State::SynSent => return self.fail(None),
            _ => return,
        }
        self.fin_wanted = true;
    }

    /// The holder is gone. Unread data means that the peer must learn that it was not taken.
    pub fn orphan(&mut self, egress: &mut Egress, now: u64) {
        self.orphan = true;
        if !self.receive.is_empty() && !self.fin_received {
            return self.abort(egress, now);
        }
        self.finish();
        if self.end_at.is_none() {
            self.end_at = Some(now + ORPHAN_US);
        }
    }

    pub fn abort(&mut self, egress: &mut Egress, now: u64) {
        if !matches!(self.state, State::SynSent | State::Closed | State::TimeWait) {
            self.emit(egress, now, self.snd_nxt, RST | ACK, 0, 0);
        }
        self.fail(None);
    }

    fn fail(&mut self, error: Option<Error>) {
        self.state = State::Closed;
        self.error = self.error.or(error);
        self.transmit = VecDeque::new();
        self.resend_at = None;
        self.ack_at = None;
        self.end_at = None;
    }

    fn window(&self) -> u32 {
        let room = (RECEIVE_BUFFER - self.receive.len().min(RECEIVE_BUFFER)) as u32;
        let limit = 0xffffu32 << self.rcv_shift;
        let edge = self.rcv_nxt.wrapping_add(room.min(limit) >> self.rcv_shift << self.rcv_shift);
        let told = self.rcv_edge.wrapping_sub(self.rcv_nxt);
        if after(edge, self.rcv_edge) {
            edge.wrapping_sub(self.rcv_nxt)
        } else {
            told
        }
    }

    /// After a read: tells the peer when the window grew by two segments or by half.
    pub fn window_opened(&mut self) {
        let told = self.rcv_edge.wrapping_sub(self.rcv_nxt);
        let grown = self.window().wrapping_sub(told) as usize;
        if grown >= (2 * self.mss).min(RECEIVE_BUFFER / 2)
            && (told as usize) < RECEIVE_BUFFER / 2
            && !matches!(self.state, State::Closed | State::TimeWait)
        {
            self.ack_now = true;
        }
    }

    fn emit(&mut self, egress: &mut Egress, now: u64, seq: u32, flags: u8, at: usize, n: usize) {
        let syn = flags & SYN != 0;
        let window = self.window();
        self.rcv_edge = self.rcv_nxt.wrapping_add(window);
        let shown = if syn { window.min(0xffff) } else { window >> self.rcv_shift };
        let header = Header {
            source_port: self.local.port(),
            target_port: self.remote.port(),
            seq,
            ack: if flags & ACK != 0 { self.rcv_nxt } else { 0 },
            flags,
            window: shown as u16,
            mss: syn.then_some(self.own_mss),
            window_scale: (syn && self.rcv_shift > 0).then_some(self.rcv_shift),
        };
        let (source, target) = (*self.local.ip(), *self.remote.ip());
        let data = &self.transmit;
        egress.send(source, target, PROTO_TCP, now, |frame| {
            let start = frame.len();
            push_tcp(frame, &header);
            let (a, b) = data.as_slices();
            if at < a.len() {
                let part = &a[at..a.len().min(at + n)];
                frame.extend_from_slice(part);
                frame.extend_from_slice(&b[..n - part.len()]);
            } else if n > 0 {
                frame.extend_from_slice(&b[at - a.len()..at - a.len() + n]);
            }
            let length = frame.len() - start;
            let sum = pseudo_sum(source, target, PROTO_TCP, length);
            fill_checksum(&mut frame[start..], 16, sum);
        });
        if flags & ACK != 0 {
            self.ack_now = false;
            self.ack_at = None;
            self.segments_unacked = 0;
        }
    }

    /// Sends what the windows allow, then a bare acknowledgement where one is due.
    pub fn flush(&mut self, egress: &mut Egress, now: u64) {
        match self.state {
            State::Closed => return,
            State::SynSent if self.snd_nxt == self.snd_una => self.send_syn(egress, now, SYN),
            State::SynReceived if self.snd_nxt == self.snd_una => {
                self.send_syn(egress, now, SYN | ACK)
            }
            State::SynSent | State::SynReceived => {}
            _ => self.send_data(egress, now),
        }
        if self.ack_now && self.state != State::SynSent {
            self.emit(egress, now, self.snd_nxt, ACK, 0, 0);
        }
    }

    fn send_syn(&mut self, egress: &mut Egress, now: u64, flags: u8) {
        self.emit(egress, now, self.snd_una, flags, 0, 0);
        self.snd_nxt = self.snd_una.wrapping_add(1);
        self.snd_max = self.snd_nxt;
        if self.resends == 0 {
            self.timed = Some((self.snd_nxt, now));
        }
        self.resend_at = Some(now + self.rto_us);
    }

    fn fin_sent(&self) -> bool {
        let end = self.snd_una.wrapping_add(self.transmit.len() as u32);
        self.fin_wanted && after(self.snd_max, end)
    }

    fn send_data(&mut self, egress: &mut Egress, now: u64) {
        loop {
            let flight = self.snd_nxt.wrapping_sub(self.snd_una) as usize;
            let allowed = (self.snd_wnd as usize).min(self.congestion).saturating_sub(flight);
            let offset = flight.min(self.transmit.len());
            let unsent = self.transmit.len() - offset;
            let size = unsent.min(self.mss).min(allowed);
            let last = size == unsent;
            let fin = self.fin_wanted && last && flight <= self.transmit.len();
            if size == 0 && !fin {
                break;
            }
            // Small pieces wait for the acknowledgement of what is under way (Nagle), and a
            // part of a segment waits for the window to open (silly window, RFC 1122 4.2.3.4).
            let small = size < self.mss && !fin;
            if small && flight > 0 && (!last || !self.no_delay) {
                break;
            }
            let mut flags = ACK;
            if last {
                flags |= PSH;
            }
            if fin {
                flags |= FIN;
            }
            self.emit(egress, now, self.snd_nxt, flags, offset, size);
            self.snd_nxt = self.snd_nxt.wrapping_add(size as u32 + u32::from(fin));
            if after(self.snd_nxt, self.snd_max) {
                self.snd_max = self.snd_nxt;
                if self.timed.is_none() {
                    self.timed = Some((self.snd_nxt, now));
                }
            }
            if self.resend_at.is_none() {
                self.resend_at = Some(now + self.rto_us);
            }
        }
        // A closed window is probed by the same timer.
        if self.resend_at.is_none() && !self.transmit.is_empty() {
            self.resend_at = Some(now + self.rto_us);
        }
    }

    pub fn poll(&mut self, egress: &mut Egress, now: u64) {
        if self.end_at.is_some_and(|t| t <= now) {
            if self.state != State::TimeWait {
                self.abort(egress, now);
            }
            return self.fail(None);
        }
        if self.ack_at.is_some_and(|t| t <= now) {
            self.ack_now = true;
            self.ack_at = None;
        }
        if self.keep_alive && self.state == State::Established {
            let due = self.heard_us + KEEP_ALIVE_US * u64::from(self.probes + 1);
            if due <= now {
                if self.probes >= KEEP_ALIVE_PROBES {
                    return self.fail(Some(Error::TimedOut));
                }
                self.probes += 1;
                self.emit(egress, now, self.snd_una.wrapping_sub(1), ACK, 0, 0);
            }
        }
        if self.resend_at.is_some_and(|t| t <= now) {
            self.on_timeout(egress, now);
        }
    }

    fn on_timeout(&mut self, egress: &mut Egress, now: u64) {
        let opening = matches!(self.state, State::SynSent | State::SynReceived);
        self.resends += 1;
        if self.resends > if opening { MAX_SYN_RESENDS } else { MAX_RESENDS } {
            return self.fail(Some(Error::TimedOut));
        }
        self.rto_us = (self.rto_us * 2).min(RTO_MAX_US);
        self.timed = None;
        self.resent += 1;
        self.resend_at = Some(now + self.rto_us);
        if opening {
            self.snd_nxt = self.snd_una;
            return;
        }
        if self.snd_wnd == 0 && self.snd_nxt == self.snd_una && !self.transmit.is_empty() {
            self.emit(egress, now, self.snd_una, ACK, 0, 1); // A window probe of one byte.
            self.snd_max = self.snd_una.wrapping_add(1).max(self.snd_max);
            return;
        }
        let flight = self.snd_nxt.wrapping_sub(self.snd_una) as usize;
        self.threshold = (flight / 2).max(2 * self.mss);
        self.congestion = self.mss;
        self.in_recovery = false;
        self.duplicates = 0;
        self.recover = self.snd_max;
        self.snd_nxt = self.snd_una;
    }

    /// Takes a segment of this connection.
    pub fn on_segment(&mut self, egress: &mut Egress, segment: &Segment, now: u64) {
        self.heard_us = now;
        self.probes = 0;
        if self.state == State::SynSent {
            return self.on_segment_syn_sent(segment, now);
        }
        let window = self.rcv_edge.wrapping_sub(self.rcv_nxt);
        let length = segment.length();
        let start = segment.seq.wrapping_sub(self.rcv_nxt) as i32;
        let end = start.wrapping_add(length as i32);
        let acceptable = match length {
            0 => start >= 0 && start as u32 <= window,
            _ => end > 0 && (start < 0 || (start as u32) < window.max(1)),
        };
        if segment.flags & RST != 0 {
            // RFC 5961: only the exact next number resets; one elsewhere in the window is asked.
            if segment.seq == self.rcv_nxt {
                let refused = self.state == State::SynReceived;
                let error = if refused { Error::ConnectionRefused } else { Error::ConnectionReset };
                let quiet = matches!(self.state, State::TimeWait | State::LastAck);
                self.fail((!quiet).then_some(error));
            } else if acceptable {
                self.ack_now = true;
            }
            return;
        }
        if !acceptable || segment.flags & SYN != 0 {
            self.ack_now = true;
            if self.state == State::SynReceived && segment.flags & SYN != 0 {
                self.snd_nxt = self.snd_una; // Their SYN again: our answer was lost.
            }
            return;
        }
        if segment.flags & ACK == 0 {
            return;
        }
        if self.state == State::SynReceived {
            if segment.ack != self.snd_max {
                return self.emit(egress, now, segment.ack, RST, 0, 0);
            }
            self.state = State::Established;
            self.snd_wl1 = segment.seq.wrapping_sub(1);
        }
        if !self.on_ack(egress, segment, now) {
            return;
        }
        self.on_data(segment, start, now);
    }

    fn on_segment_syn_sent(&mut self, segment: &Segment, now: u64) {
        let acks = segment.flags & ACK != 0;
        if acks && segment.ack != self.snd_nxt {
            return;
        }
        if segment.flags & RST != 0 {
            if acks {
                self.fail(Some(Error::ConnectionRefused));
            }
            return;
        }
        if segment.flags & SYN == 0 {
            return;
        }
        self.take_syn(segment);
        self.snd_wnd = u32::from(segment.window);
        self.snd_wl1 = segment.seq;
        self.snd_wl2 = segment.ack;
        if acks {
            self.take_rtt_sample(segment.ack, now);
            self.snd_una = segment.ack;
            self.resend_at = None;
            self.resends = 0;
            self.state = State::Established;
            self.ack_now = true;
        } else {
            self.state = State::SynReceived; // Both sides opened at once.
            self.snd_nxt = self.snd_una;
        }
    }

    fn take_rtt_sample(&mut self, ack: u32, now: u64) {
        let Some((seq, sent)) = self.timed else { return };
        if after(seq, ack) {
            return;
        }
        self.timed = None;
        let sample = now.saturating_sub(sent);
        if self.srtt_us == 0 {
            self.srtt_us = sample;
            self.rttvar_us = sample / 2;
        } else {
            self.rttvar_us = (3 * self.rttvar_us + self.srtt_us.abs_diff(sample)) / 4;
            self.srtt_us = (7 * self.srtt_us + sample) / 8;
        }
        self.rto_us = (self.srtt_us + (4 * self.rttvar_us).max(1000)).clamp(RTO_MIN_US, RTO_MAX_US);
    }

    /// Takes the acknowledgement; false where the segment must go no further.
    fn on_ack(&mut self, egress: &mut Egress, segment: &Segment, now: u64) -> bool {
        if after(segment.ack, self.snd_max) {
            self.ack_now = true;
            return false;
        }
        if after(segment.seq, self.snd_wl1)
            || (segment.seq == self.snd_wl1 && !after(self.snd_wl2, segment.ack))
        {
            let window = u32::from(segment.window) << self.snd_shift;
            let same = window == self.snd_wnd;
            if self.snd_wnd == 0 && window > 0 {
                self.resends = 0;
            }
            self.snd_wnd = window;
            self.snd_wl1 = segment.seq;
            self.snd_wl2 = segment.ack;
            let outstanding = self.snd_nxt != self.snd_una;
            if segment.ack == self.snd_una && segment.length() == 0 && same && outstanding {
                self.on_duplicate_ack(egress, now);
            }
        }
        if !after(segment.ack, self.snd_una) {
            return true;
        }
        let fin_sent = self.fin_sent();
        let acked = segment.ack.wrapping_sub(self.snd_una) as usize;
        let data = acked.min(self.transmit.len());
        self.take_rtt_sample(segment.ack, now);
        self.transmit.drain(..data);
        self.snd_una = segment.ack;
        if after(self.snd_una, self.snd_nxt) {
            self.snd_nxt = self.snd_una;
        }
        self.resends = 0;
        self.duplicates = 0;
        if self.in_recovery && after(self.recover, segment.ack) {
            self.resend_first(egress, now); // A partial acknowledgement: the next hole (NewReno).
            self.congestion = self.congestion.saturating_sub(data).max(self.mss) + self.mss;
        } else if self.in_recovery {
            self.in_recovery = false;
            self.congestion = self.threshold;
        } else if self.congestion < self.threshold {
            self.congestion += data.min(2 * self.mss);
        } else {
            self.congestion += (self.mss * self.mss / self.congestion).max(1);
        }
        self.congestion = self.congestion.min(4 * SEND_BUFFER);
        let all = self.snd_una == self.snd_max;
        self.resend_at = if all { None } else { Some(now + self.rto_us) };
        if all && fin_sent {
            match self.state {
                State::FinWait1 => {
                    self.state = State::FinWait2;
                }
                State::Closing => self.enter_time_wait(now),
                State::LastAck => {
                    self.fail(None);
                    return false;
                }
                _ => {}
            }
        }
        true
    }

    fn resend_first(&mut self, egress: &mut Egress, now: u64) {
        let size = self.transmit.len().min(self.mss);
        let fin = size == self.transmit.len() && self.fin_sent();
        self.resent += 1;
        self.timed = None;
        self.emit(egress, now, self.snd_una, if fin { ACK | FIN } else { ACK }, 0, size);
    }

    fn on_duplicate_ack(&mut self, egress: &mut Egress, now: u64) {
        self.duplicates += 1;
        if self.in_recovery {
            self.congestion += self.mss;
        } else if self.duplicates == 3 && after(self.snd_una, self.recover.wrapping_sub(1)) {
            let flight = self.snd_nxt.wrapping_sub(self.snd_una) as usize;
            self.threshold = (flight / 2).max(2 * self.mss);
            self.recover = self.snd_max;
            self.in_recovery = true;
            self.resend_first(egress, now);
            self.congestion = self.threshold + 3 * self.mss;
        }
    }

    fn on_data(&mut self, segment: &Segment, start: i32, now: u64) {
        let receiving =
            matches!(self.state, State::Established | State::FinWait1 | State::FinWait2);
        if !receiving {
            if segment.length() > 0 {
                self.ack_now = true;
                if self.state == State::TimeWait {
                    self.end_at = Some(now + TIME_WAIT_US);
                }
            }
            return;
        }
        if segment.length() == 0 {
            return;
        }
        if start > 0 {
            self.ack_now = true; // A hole before it: ask for the missing part again.
            return;
        }
        let skip = (start.unsigned_abs() as usize).min(segment.data.len());
        let fresh = &segment.data[skip..];
        let room = self.rcv_edge.wrapping_sub(self.rcv_nxt) as usize;
        let taken = &fresh[..fresh.len().min(room)];
        if self.orphan && !taken.is_empty() {
            // Nobody will read it: the peer must learn that (RFC 1122, 4.2.2.13).
            self.read_shut = true;
        }
        if !self.read_shut {
            self.receive.extend(taken);
        }
        self.rcv_nxt = self.rcv_nxt.wrapping_add(taken.len() as u32);
        self.segments_unacked += 1;
        if self.segments_unacked >= 2 || taken.len() < fresh.len() {
            self.ack_now = true;
        } else if self.ack_at.is_none() {
            self.ack_at = Some(now + DELAYED_ACK_US);
        }
        if segment.flags & FIN != 0 && taken.len() == fresh.len() {
            self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
            self.rcv_edge = self.rcv_edge.wrapping_add(1);
            self.fin_received = true;
            self.ack_now = true;
            match self.state {
                State::Established => self.state = State::CloseWait,
                State::FinWait1 => self.state = State::Closing,
                _ => self.enter_time_wait(now),
            }
        }
    }

    fn enter_time_wait(&mut self, now: u64) {
        self.state = State::TimeWait;
        self.resend_at = None;
        self.end_at = Some(now + TIME_WAIT_US);
    }

    /// A new SYN may take the place of a connection that only waits out its time (RFC 9293,
    /// 3.6.1) where its number is past all that the old one received.
    pub fn may_be_replaced(&self, syn: &Segment) -> bool {
        self.state == State::TimeWait && after(syn.seq, self.rcv_nxt)
    }
}

/// The answer to a segment that belongs to no connection (RFC 9293, 3.10.7.1).
pub fn send_reset(egress: &mut Egress, packet: &Packet, segment: &Segment, now: u64) {
    if segment.flags & RST != 0 {
        return;
    }
    let acks = segment.flags & ACK != 0;
    let header = Header {
        source_port: segment.target_port,
        target_port: segment.source_port,
        seq: if acks { segment.ack } else { 0 },
        ack: if acks { 0 } else { segment.seq.wrapping_add(segment.length()) },
        flags: if acks { RST } else { RST | ACK },
        window: 0,
        mss: None,
        window_scale: None,
    };
    let (source, target) = (packet.target, packet.source);
    egress.send(source, target, PROTO_TCP, now, |frame: &mut Vec<u8>| {
        let start = frame.len();
        push_tcp(frame, &header);
        fill_checksum(&mut frame[start..], 16, pseudo_sum(source, target, PROTO_TCP, TCP_HEADER));
    });
}
