//! What arrives on a connection: checks, acknowledgements, data and its end.

use super::*;

impl Tcp {
    /// Takes a segment of this connection (RFC 9293, 3.10.7).
    pub fn on_segment(&mut self, egress: &mut Egress, segment: &Segment, now: u64) {
        if self.state == State::SynSent {
            return self.on_segment_syn_sent(egress, segment, now);
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
            // Only the exact next number resets; one elsewhere in the window is asked about
            // (RFC 5961, 3.2). In TIME-WAIT none does (RFC 1337).
            if segment.seq != self.rcv_nxt {
                if acceptable {
                    self.challenge(now);
                }
            } else if self.state != State::TimeWait {
                let quiet = self.state == State::LastAck;
                self.fail((!quiet).then_some(Error::ECONNRESET));
            }
            return;
        }
        if !self.take_stamp(segment, now) {
            return;
        }
        if segment.flags & SYN != 0 {
            let again = self.state == State::SynReceived && self.is_answer_to(segment);
            if again && segment.flags & ACK != 0 && segment.ack == self.recovery.snd_nxt {
                // Both opened at once, and this answers our SYN: another answer to it would be
                // answered in the same way, without end.
                self.opened(now);
                self.recovery.snd_una = segment.ack;
            } else if again {
                self.syn_due = true; // Their SYN again: our answer was lost.
            } else {
                self.challenge(now); // RFC 5961, 4.2.
            }
            return;
        }
        self.heard_us = now;
        self.probes = 0;
        if !acceptable {
            if segment.data.is_empty() && segment.flags & FIN == 0 {
                // Old acknowledgements overtaken by newer ones; also keep-alive probes.
                return self.challenge(now);
            }
            self.ack_now = true;
            if end <= 0 {
                self.duplicate = Some((segment.seq, segment.seq.wrapping_add(length)));
            }
            if self.state == State::TimeWait {
                self.end_at = Some(now + TIME_WAIT_US);
            }
            return;
        }
        if segment.flags & ACK == 0 {
            return;
        }
        if self.state == State::SynReceived {
            if segment.ack != self.recovery.snd_nxt {
                return send_reset(egress, self.key, segment, now);
            }
            self.opened(now);
            self.recovery.snd_una = segment.ack;
            self.snd_wl1 = segment.seq.wrapping_sub(1);
        }
        if self.on_ack(segment, now) {
            self.on_data(egress, segment, start, now);
        }
    }

    fn opened(&mut self, now: u64) {
        self.state = if self.fin_wanted { State::FinWait1 } else { State::Established };
        if self.resends == 0 {
            self.recovery.take_rtt(now.saturating_sub(self.syn_us));
        }
        self.resends = 0;
        self.rto_at = None;
    }

    fn challenge(&mut self, now: u64) {
        if now >= self.challenge_at {
            self.challenge_at = now + CHALLENGE_US;
            self.ack_now = true;
        }
    }

    /// Checks and takes the peer's clock (PAWS, RFC 7323, 5.3); false for a segment that is old.
    fn take_stamp(&mut self, segment: &Segment, now: u64) -> bool {
        if !self.stamps {
            return true;
        }
        let Some((value, _)) = segment.options.timestamps else { return false };
        let fresh = now.saturating_sub(self.stamp_us) <= STAMP_AGE_US;
        if after(self.stamp_recent, value) && fresh {
            if segment.length() > 0 {
                self.ack_now = true;
            } else {
                self.challenge(now);
            }
            return false;
        }
        let end = segment.seq.wrapping_add(segment.length());
        if !after(segment.seq, self.acked) && !after(self.acked, end) {
            (self.stamp_recent, self.stamp_us) = (value, now);
        }
        true
    }

    fn on_segment_syn_sent(&mut self, egress: &mut Egress, segment: &Segment, now: u64) {
        let acks = segment.flags & ACK != 0;
        if acks && (segment.ack != self.recovery.snd_nxt || self.recovery.in_flight() == 0) {
            return send_reset(egress, self.key, segment, now);
        }
        if segment.flags & RST != 0 {
            if acks {
                self.fail(Some(Error::ECONNREFUSED));
            }
            return;
        }
        if segment.flags & SYN == 0 {
            return;
        }
        self.heard_us = now;
        self.take_syn(segment, now);
        if acks {
            self.recovery.snd_una = segment.ack;
            self.opened(now);
            self.ack_now = true;
        } else {
            self.state = State::SynReceived; // Both sides opened at once.
            self.syn_due = true;
        }
    }

    /// Takes the acknowledgement; false where the segment must go no further.
    fn on_ack(&mut self, segment: &Segment, now: u64) -> bool {
        let (ack, old) = (segment.ack, self.recovery.snd_una);
        // RFC 5961, 5.2: an acknowledgement that could not come from this peer.
        if after(ack, self.recovery.snd_nxt) || after(old.wrapping_sub(self.snd_wnd_max), ack) {
            self.challenge(now);
            return false;
        }
        if after(old, ack) {
            return true;
        }
        let before = self.snd_wnd;
        if after(segment.seq, self.snd_wl1)
            || (segment.seq == self.snd_wl1 && !after(self.snd_wl2, ack))
        {
            self.snd_wnd = u32::from(segment.window) << self.snd_shift;
            self.snd_wnd_max = self.snd_wnd_max.max(self.snd_wnd);
            self.snd_wl1 = segment.seq;
            self.snd_wl2 = ack;
        }
        let echo = segment.options.timestamps.filter(|_| self.stamps).map(|(_, echo)| {
            // How long ago the echoed clock was read, in its own unit.
            u64::from(self.stamp(now).wrapping_sub(echo)) * 1000
        });
        let same = self.snd_wnd == before && segment.length() == 0;
        let (advanced, all) = self.recovery.on_ack(ack, segment.options.sacks(), same, echo, now);
        if before == 0 && self.snd_wnd > 0 {
            self.resends = 0;
            self.recovery.window_reopened();
            self.rto_at = None;
        }
        if self.snd_wnd == 0 {
            self.resends = 0; // It answers; see `on_timeout`.
        }
        if !advanced {
            return true;
        }
        let data = ack.wrapping_sub(old) as usize;
        self.transmit.consume(data.min(self.transmit.len()));
        self.resends = 0;
        self.rto_at = (!all).then(|| now + self.recovery.rto_us);
        self.arm_probe(now);
        if self.orphan && self.state != State::TimeWait {
            self.end_at = Some(now + ORPHAN_US);
        }
        if all && self.fin_sent {
            match self.state {
                State::FinWait1 => self.state = State::FinWait2,
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

    fn on_data(&mut self, egress: &mut Egress, segment: &Segment, start: i32, now: u64) {
        let receiving =
            matches!(self.state, State::Established | State::FinWait1 | State::FinWait2);
        if segment.length() == 0 || !receiving {
            self.ack_now |= segment.length() > 0;
            return;
        }
        if self.orphan && !segment.data.is_empty() {
            // Nobody will read it: the peer must learn that (RFC 1122, 4.2.2.13).
            return self.abort(egress, now);
        }
        let skip = (start.min(0).unsigned_abs() as usize).min(segment.data.len());
        let offset = start.max(0) as usize;
        let from = self.rcv_nxt.wrapping_add(offset as u32);
        let limit = self.receive.limit(RECEIVE_BUFFER, egress.memory);
        let window = self.rcv_edge.wrapping_sub(self.rcv_nxt) as usize;
        let room = window.min(limit.saturating_sub(self.ready)).saturating_sub(offset);
        let fresh = &segment.data[skip..];
        let taken = &fresh[..fresh.len().min(room)];
        let to = from.wrapping_add(taken.len() as u32);
        if skip > 0 {
            self.duplicate = Some((segment.seq, self.rcv_nxt));
        }
        if segment.flags & FIN != 0 && taken.len() == fresh.len() {
            self.fin_at = Some(to);
        }
        self.ack_now |= taken.len() < fresh.len() || skip > 0;
        if offset > 0 {
            self.ack_now = true; // A hole before it: at once, so that the peer finds the loss.
            return self.take_island(from, to, taken, limit);
        }
        if !taken.is_empty() {
            self.ack_now |= !self.islands.is_empty();
            if !self.read_shut {
                self.receive.write(self.ready, taken, limit);
            }
            self.advance(to);
            self.segments_unacked += 1;
            if self.segments_unacked >= 2 {
                self.ack_now = true;
            } else if self.ack_at.is_none() {
                self.ack_at = Some(now + DELAYED_ACK_US);
            }
        }
        if self.fin_at == Some(self.rcv_nxt) {
            self.on_fin(now);
        }
    }

    /// Keeps data that lies past a hole.
    fn take_island(&mut self, from: u32, to: u32, data: &[u8], limit: usize) {
        if data.is_empty() || self.read_shut {
            return;
        }
        let (mut low, mut high) = (from, to);
        let touches = |&(start, end): &(u32, u32)| !after(start, to) && !after(from, end);
        let known = self.islands.iter().any(|&(s, e)| !after(s, from) && !after(to, e));
        if known {
            self.duplicate = Some((from, to));
        } else if self.islands.len() >= MAX_ISLANDS && !self.islands.iter().any(touches) {
            return;
        }
        self.islands.retain(|island| {
            if touches(island) {
                low = if after(low, island.0) { island.0 } else { low };
                high = if after(island.1, high) { island.1 } else { high };
            }
            !touches(island)
        });
        self.islands.insert(0, (low, high));
        let at = self.ready + from.wrapping_sub(self.rcv_nxt) as usize;
        self.receive.write(at, data, limit);
    }

    /// Moves the next expected number to `to`, and on over what was received past it.
    fn advance(&mut self, mut to: u32) {
        let touched = |island: &(u32, u32), to| !after(island.0, to);
        while let Some(i) = self.islands.iter().position(|island| touched(island, to)) {
            let (_, end) = self.islands.swap_remove(i);
            to = if after(end, to) { end } else { to };
        }
        if !self.read_shut {
            self.ready += to.wrapping_sub(self.rcv_nxt) as usize;
        } else {
            self.receive.truncate(self.ready);
        }
        self.rcv_nxt = to;
        self.news = true;
    }

    fn on_fin(&mut self, now: u64) {
        self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
        if after(self.rcv_nxt, self.rcv_edge) {
            self.rcv_edge = self.rcv_nxt;
        }
        self.receive.truncate(self.ready);
        self.islands = Vec::new();
        self.fin_received = true;
        self.ack_now = true;
        match self.state {
            State::Established => self.state = State::CloseWait,
            State::FinWait1 => self.state = State::Closing,
            _ => self.enter_time_wait(now),
        }
    }

    fn enter_time_wait(&mut self, now: u64) {
        self.state = State::TimeWait;
        self.end_sending();
        self.end_at = Some(now + TIME_WAIT_US);
    }
}
