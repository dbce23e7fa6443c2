//! What one connection has under way: round-trip times (RFC 6298), losses found by RACK-TLP
//! (RFC 8985) from selective acknowledgements (RFC 2018, 2883), and the congestion window of
//! NewReno (RFC 5681, 6582), with the sending rule of RFC 6675 during recovery.

use crate::tcp::{after, RTO_INITIAL_US, RTO_MAX_US, RTO_MIN_US};
use crate::*;
use alloc::collections::VecDeque;

/// RFC 6928.
const INITIAL_SEGMENTS: usize = 10;
/// Segments beyond which one acknowledgement opens the window no further: a receiver that
/// takes in a batch acknowledges it at once, one that lies gains little.
const GROWTH_SEGMENTS: usize = 8;
/// Duplicates after which the first segment is lost where the peer has no SACK (RFC 5681).
const DUPLICATES: usize = 3;
const REORDER_STEPS_MAX: u64 = 64;
/// After so many recoveries without a needless resending reordering is waited for no longer than
/// at first (RFC 8985, 6.2, step 4).
const REORDER_CALM: u32 = 16;
/// A lone segment's acknowledgement may be delayed by the peer; others take a batch's time.
const PROBE_LONE_US: u64 = 50_000;
const PROBE_SLACK_US: u64 = 2_000;
/// Segments listed as under way: so many, and one for each so many bytes of the send buffer.
/// It bounds the list of a program that sends single bytes.
const LISTED_SEGMENTS: usize = 64;
const LISTED_PER_BYTES: usize = 512;

#[derive(Clone, Copy)]
struct Sent {
    start: u32,
    size: u32,
    at_us: u64,
    fin: bool,
    sacked: bool,
    lost: bool,
    resent: bool,
}

impl Sent {
    fn length(&self) -> u32 {
        self.size + u32::from(self.fin)
    }

    fn end(&self) -> u32 {
        self.start.wrapping_add(self.length())
    }
}

/// What a recovery took away, to be given back should it turn out needless (RFC 3708).
struct Undo {
    window: usize,
    threshold: usize,
    /// Segments sent again in it that are not known to have come twice.
    open: u32,
}

/// What one acknowledgement tells of time.
struct Seen {
    /// How long ago the peer's echo of our clock was read.
    echo_us: Option<u64>,
    /// When the latest segment was sent that arrived at its first sending.
    sample: Option<u64>,
    now: u64,
}

#[derive(Default)]
pub struct Recovery {
    pub snd_una: u32,
    pub snd_nxt: u32,
    /// In order and without gaps from `snd_una` to `snd_nxt`.
    segments: VecDeque<Sent>,
    /// Sums over `segments`; no segment is both.
    sacked: u32,
    lost: u32,
    segment_size: usize,
    selective: bool,
    window: usize,
    threshold: usize,
    /// Acknowledged bytes on the way to the window's next segment.
    credit: usize,
    /// The number whose acknowledgement ends the recovery under way.
    point: Option<u32>,
    /// The recovery is one by timeout: the window grows in it.
    slow: bool,
    /// The first resending of a recovery waits for nothing.
    force: bool,
    undo: Option<Undo>,
    /// Segments sent again that did not come twice so far: more of these are the network's.
    resendings: u32,
    duplicates: usize,
    srtt_us: u64,
    rttvar_us: u64,
    pub rto_us: u64,
    min_rtt_us: u64,
    /// The latest sent segment that is known to have arrived.
    rack: (u64, u32),
    rack_rtt_us: u64,
    highest: u32,
    reordered: bool,
    reorder_steps: u64,
    reorder_round: u32,
    /// Recoveries since a needless resending.
    reorder_calm: u32,
    /// When a segment that may only be late counts as lost.
    pub reorder_at: Option<u64>,
    /// A tail loss probe: the number it ends at, and whether it was a resending.
    probe: Option<(u32, bool)>,
    last_sent_us: u64,
}

impl Recovery {
    pub fn new(seq: u32) -> Recovery {
        Recovery {
            snd_una: seq,
            snd_nxt: seq,
            threshold: usize::MAX,
            rto_us: RTO_INITIAL_US,
            min_rtt_us: u64::MAX,
            rack: (0, seq),
            highest: seq,
            reorder_steps: 1,
            reorder_round: seq,
            ..Recovery::default()
        }
    }

    /// What the handshake settled.
    pub fn begin(&mut self, segment_size: usize, selective: bool) {
        self.segment_size = segment_size;
        self.selective = selective;
        self.window = INITIAL_SEGMENTS * segment_size;
    }

    /// Forgets what is under way; the numbers stay.
    pub fn clear(&mut self) {
        self.segments = VecDeque::new();
        (self.sacked, self.lost) = (0, 0);
        self.reorder_at = None;
    }

    pub fn in_flight(&self) -> usize {
        self.snd_nxt.wrapping_sub(self.snd_una) as usize
    }

    /// Bytes taken to be in the network (RFC 6675, 4).
    fn pipe(&self) -> usize {
        let arrived = if self.selective { 0 } else { self.duplicates * self.segment_size };
        self.in_flight().saturating_sub((self.sacked + self.lost) as usize + arrived)
    }

    /// Whether a new segment may go.
    pub fn allows(&self, size: usize, buffer: usize) -> bool {
        let pipe = self.pipe();
        self.lost == 0
            && (pipe == 0 || pipe + size <= self.window)
            && self.segments.len() < LISTED_SEGMENTS + buffer / LISTED_PER_BYTES
    }

    /// The lost segment that may be sent again now.
    pub fn next_lost(&self, size: usize) -> Option<usize> {
        if self.lost == 0 {
            return None;
        }
        let pipe = self.pipe();
        let index = self.segments.iter().position(|s| s.lost)?;
        let size = size.min(self.segments[index].size as usize);
        (self.force || pipe == 0 || pipe + size <= self.window).then_some(index)
    }

    /// The next new segment is sent.
    pub fn sent(&mut self, size: u32, fin: bool, now: u64) {
        // After a pause the path is no longer known (RFC 5681, 4.1).
        if self.segments.is_empty() && now.saturating_sub(self.last_sent_us) > self.rto_us {
            self.window = self.window.min(INITIAL_SEGMENTS * self.segment_size);
        }
        self.last_sent_us = now;
        let start = self.snd_nxt;
        let (sacked, lost, resent) = (false, false, false);
        self.segments.push_back(Sent { start, size, at_us: now, fin, sacked, lost, resent });
        self.snd_nxt = start.wrapping_add(size + u32::from(fin));
    }

    /// A listed segment is sent again, or its first `size` bytes: their number, size, and FIN.
    pub fn resent(&mut self, index: usize, size: usize, now: u64) -> (u32, usize, bool) {
        let segment = self.segments[index];
        let size = (segment.size as usize).min(size) as u32;
        if size < segment.size {
            let start = segment.start.wrapping_add(size);
            let rest = Sent { start, size: segment.size - size, ..segment };
            self.segments.insert(index + 1, rest);
            (self.segments[index].size, self.segments[index].fin) = (size, false);
        }
        let segment = &mut self.segments[index];
        if segment.lost {
            self.lost -= segment.length();
        }
        (segment.lost, segment.resent, segment.at_us) = (false, true, now);
        self.force = false;
        self.last_sent_us = now;
        self.resendings = self.resendings.saturating_add(1);
        if let Some(undo) = &mut self.undo {
            undo.open = undo.open.saturating_add(1);
        }
        (segment.start, segment.size as usize, segment.fin)
    }

    /// The last segment that is not known to have arrived.
    pub fn last(&self) -> usize {
        self.segments.iter().rposition(|s| !s.sacked).unwrap_or(0)
    }

    /// Whether silence is probed: as RFC 8985, 7.2 has it, and also in a recovery in which all
    /// that was lost went again. There one lost acknowledgement would cost the long timer.
    pub fn may_probe(&self) -> bool {
        let calm = self.lost == 0 && (self.point.is_some() || self.sacked == 0) && !self.slow;
        self.selective && calm && self.probe.is_none() && !self.segments.is_empty()
    }

    pub fn probe_after(&self) -> Option<u64> {
        let lone = self.segments.len() == 1;
        let pause = 2 * self.srtt_us + if lone { PROBE_LONE_US } else { PROBE_SLACK_US };
        (self.may_probe() && self.srtt_us > 0).then_some(pause)
    }

    /// A tail loss probe was sent.
    pub fn probing(&mut self, resent: bool) {
        self.probe = Some((self.snd_nxt, resent));
    }

    pub fn take_rtt(&mut self, sample: u64) {
        let sample = sample.max(1);
        self.min_rtt_us = self.min_rtt_us.min(sample);
        if self.srtt_us == 0 {
            self.srtt_us = sample;
            self.rttvar_us = sample / 2;
        } else {
            self.rttvar_us = (3 * self.rttvar_us + self.srtt_us.abs_diff(sample)) / 4;
            self.srtt_us = (7 * self.srtt_us + sample) / 8;
        }
        self.settle_rto();
    }

    fn settle_rto(&mut self) {
        if self.srtt_us > 0 {
            let spread = (4 * self.rttvar_us).max(1000);
            self.rto_us = (self.srtt_us + spread).clamp(RTO_MIN_US, RTO_MAX_US);
        }
    }

    pub fn back_off(&mut self) {
        self.rto_us = (self.rto_us * 2).min(RTO_MAX_US);
    }

    /// Takes an acknowledgement at or past `snd_una`. `same`: it neither moved the window nor
    /// carried data. `echo_us`: how long ago the peer's echo of our clock was read. The answer:
    /// whether it moved on, and whether nothing is under way any more.
    pub fn on_ack(
        &mut self,
        ack: u32,
        sacks: &[(u32, u32)],
        same: bool,
        echo_us: Option<u64>,
        now: u64,
    ) -> (bool, bool) {
        let flight = self.in_flight();
        let acked = ack.wrapping_sub(self.snd_una) as usize;
        let mut seen = Seen { echo_us, sample: None, now };
        self.take_cumulative(ack, &mut seen);
        let twice = sacks.first().is_some_and(|&(start, end)| {
            let within = |&(s, e): &(u32, u32)| !after(s, start) && !after(end, e);
            after(end, start) && (!after(end, ack) || sacks.get(1).is_some_and(within))
        });
        let marked = if self.selective { sacks } else { &[] };
        for range in marked {
            self.take_sack(*range, &mut seen);
        }
        if let Some(at) = seen.sample {
            self.take_rtt(now.saturating_sub(at));
        } else if acked > 0 {
            self.settle_rto();
        }
        self.end_probe(ack, twice, acked == 0 && same && sacks.is_empty());
        if twice && self.resendings > 0 {
            self.needless(ack);
        }
        if self.point.is_some_and(|point| !after(point, ack)) {
            self.point = None;
            self.reorder_calm = (self.reorder_calm + 1).min(REORDER_CALM);
            if self.reorder_calm == REORDER_CALM {
                self.reorder_steps = 1;
            }
            self.slow = false;
            self.duplicates = 0;
        }
        if self.selective {
            self.detect_losses(now);
        } else {
            self.count_duplicates(acked, same && flight > 0);
        }
        if acked > 0 && (self.point.is_none() || self.slow) && 2 * flight >= self.window {
            self.grow(acked);
        }
        debug_assert!(self.consistent());
        (acked > 0, self.segments.is_empty())
    }

    /// A segment that was sent again had arrived before.
    fn needless(&mut self, ack: u32) {
        self.resendings -= 1;
        self.reorder_calm = 0;
        if !after(self.reorder_round, ack) {
            // Losses are waited for longer (RFC 8985, 6.2, step 4).
            self.reorder_round = self.snd_nxt;
            self.reorder_steps = (self.reorder_steps + 1).min(REORDER_STEPS_MAX);
        }
        if let Some(undo) = self.undo.as_mut().filter(|undo| undo.open > 0) {
            undo.open -= 1;
            if undo.open == 0 {
                self.window = self.window.max(undo.window);
                self.threshold = self.threshold.max(undo.threshold);
            }
        }
    }

    fn take_cumulative(&mut self, ack: u32, seen: &mut Seen) {
        while let Some(first) = self.segments.front_mut() {
            if !after(ack, first.start) {
                break;
            }
            if after(first.end(), ack) {
                let cut = ack.wrapping_sub(first.start);
                self.sacked -= if first.sacked { cut } else { 0 };
                self.lost -= if first.lost { cut } else { 0 };
                first.start = ack;
                first.size -= cut;
                break;
            }
            let segment = *first;
            self.segments.pop_front();
            if segment.sacked {
                self.sacked -= segment.length();
            } else {
                self.lost -= if segment.lost { segment.length() } else { 0 };
                self.arrived(segment, seen);
            }
        }
        self.snd_una = ack;
    }

    fn take_sack(&mut self, (start, end): (u32, u32), seen: &mut Seen) {
        if !after(end, start) || after(self.snd_una, start) || after(end, self.snd_nxt) {
            return;
        }
        let first = self.segments.partition_point(|s| after(start, s.start));
        for index in first..self.segments.len() {
            let segment = self.segments[index];
            if after(segment.end(), end) {
                break;
            }
            if segment.sacked {
                continue;
            }
            self.segments[index].sacked = true;
            self.segments[index].lost = false;
            self.sacked += segment.length();
            self.lost -= if segment.lost { segment.length() } else { 0 };
            self.arrived(segment, seen);
        }
    }

    /// A segment is known to have arrived (RFC 8985, 6.2, steps 2 and 3).
    fn arrived(&mut self, segment: Sent, seen: &mut Seen) {
        let rtt = seen.now.saturating_sub(segment.at_us);
        if segment.resent {
            // The first sending may have arrived instead of the second.
            let first = seen.echo_us.is_some_and(|echo| echo > rtt + 1000);
            if first || rtt < self.min_rtt_us {
                return;
            }
        } else {
            seen.sample = seen.sample.max(Some(segment.at_us));
            self.reordered |= after(self.highest, segment.end());
        }
        if after(segment.end(), self.highest) {
            self.highest = segment.end();
        }
        if Self::later((segment.at_us, segment.end()), self.rack) {
            self.rack = (segment.at_us, segment.end());
            self.rack_rtt_us = rtt.max(1);
        }
    }

    fn later(a: (u64, u32), b: (u64, u32)) -> bool {
        a.0 > b.0 || (a.0 == b.0 && after(a.1, b.1))
    }

    /// How much later than its successors a segment may come (RFC 8985, 6.2, step 4).
    fn reorder_window(&self) -> u64 {
        let many = self.sacked as usize > (DUPLICATES - 1) * self.segment_size;
        if !self.reordered && (self.point.is_some() || many) {
            return 0;
        }
        (self.min_rtt_us.min(self.srtt_us) / 4 * self.reorder_steps).min(self.srtt_us)
    }

    /// Marks what was sent long enough before something that arrived.
    pub fn detect_losses(&mut self, now: u64) {
        self.reorder_at = None;
        if self.sacked == 0 && self.point.is_none() {
            return;
        }
        let patience = self.rack_rtt_us + self.reorder_window();
        let mut found = 0;
        for segment in &mut self.segments {
            let open = !segment.sacked && !segment.lost;
            if !open || !Self::later(self.rack, (segment.at_us, segment.end())) {
                continue;
            }
            let due = segment.at_us + patience;
            if due <= now {
                segment.lost = true;
                found += segment.length();
            } else {
                self.reorder_at = Some(self.reorder_at.map_or(due, |at| at.min(due)));
            }
        }
        self.lost += found;
        if found > 0 && self.point.is_none() {
            self.enter();
        }
    }

    fn count_duplicates(&mut self, acked: usize, duplicate: bool) {
        if acked > 0 {
            self.duplicates = self.duplicates.saturating_sub(acked.div_ceil(self.segment_size));
            if self.point.is_some() && !self.slow {
                self.lose_first(); // A partial acknowledgement: the next hole.
                self.force = true;
            } else {
                self.duplicates = 0;
            }
        } else if duplicate {
            self.duplicates += 1;
            if self.duplicates == DUPLICATES && self.point.is_none() {
                self.lose_first();
                self.enter();
            }
        }
    }

    fn lose_first(&mut self) {
        if let Some(first) = self.segments.front_mut().filter(|s| !s.lost && !s.sacked) {
            first.lost = true;
            self.lost += first.length();
        }
    }

    fn reduce(&mut self) {
        self.undo = Some(Undo { window: self.window, threshold: self.threshold, open: 0 });
        let flight = self.in_flight().min(self.window);
        self.threshold = (flight / 2).max(2 * self.segment_size);
        self.window = self.threshold;
        self.credit = 0;
    }

    fn enter(&mut self) {
        self.reduce();
        self.point = Some(self.snd_nxt);
        self.slow = false;
        self.force = true;
        self.probe = None;
    }

    /// The retransmission timer ran out for the `times`th time. `closed`: the peer's window is.
    pub fn on_timeout(&mut self, times: u32, closed: bool) {
        if !closed {
            if self.point.is_none() {
                self.reduce();
            }
            self.window = self.segment_size;
            self.slow = true;
            self.point = Some(self.snd_nxt);
        }
        // What the peer reported may since have been thrown away (RFC 2018, 8).
        let renege = times > 1 || self.segments.front().is_some_and(|s| s.sacked);
        for segment in &mut self.segments {
            segment.sacked &= !renege;
            segment.lost = !segment.sacked;
        }
        self.sacked = if renege { 0 } else { self.sacked };
        self.lost = self.in_flight() as u32 - self.sacked;
        self.duplicates = 0;
        self.probe = None;
        self.reorder_at = None;
    }

    /// RFC 8985, 7.4: a probe that repaired a loss is answered as a loss.
    fn end_probe(&mut self, ack: u32, twice: bool, bare: bool) {
        let Some((end, resent)) = self.probe else { return };
        if after(end, ack) {
            return;
        }
        let repaired = resent && !twice && after(ack, end);
        if !resent || twice || repaired || bare {
            self.probe = None;
        }
        if repaired && self.point.is_none() {
            self.reduce();
        }
    }

    fn grow(&mut self, acked: usize) {
        if self.window < self.threshold {
            let step = acked.min(GROWTH_SEGMENTS * self.segment_size);
            self.window = (self.window + step).min(self.threshold.max(self.window));
        } else {
            self.credit += acked;
            if self.credit >= self.window {
                self.credit -= self.window;
                self.window += self.segment_size;
            }
        }
        self.window = self.window.min(2 * SEND_BUFFER);
    }

    /// The peer's window opened again: what probed it goes at once.
    pub fn window_reopened(&mut self) {
        self.settle_rto();
        if self.segments.len() == 1 {
            self.lose_first();
        }
    }

    /// The path takes only smaller segments: those under way were thrown away.
    pub fn smaller(&mut self, segment_size: usize) {
        self.segment_size = segment_size;
        for segment in &mut self.segments {
            if segment.size as usize > segment_size && !segment.sacked && !segment.lost {
                segment.lost = true;
                self.lost += segment.length();
            }
        }
    }

    /// What the fields promise of each other.
    fn consistent(&self) -> bool {
        let mut next = self.snd_una;
        let (mut sacked, mut lost) = (0, 0);
        for segment in &self.segments {
            if segment.start != next || (segment.sacked && segment.lost) {
                return false;
            }
            sacked += if segment.sacked { segment.length() } else { 0 };
            lost += if segment.lost { segment.length() } else { 0 };
            next = segment.end();
        }
        let ends = self.segments.is_empty() || next == self.snd_nxt;
        ends && (sacked, lost) == (self.sacked, self.lost)
    }
}
