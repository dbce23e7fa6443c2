//! Loss, reordering and recovery (RFC 2018, 3708, 6582, 8985).

use super::*;

#[test]
fn rfc2018_ranges_past_a_hole_are_told_the_latest_first() {
    let (mut peer, id) = Peer::open_with(true, None);
    let base = peer.seq;
    let at = |peer: &mut Peer, offset: u32, data: &'static [u8]| {
        let seq = base.wrapping_add(offset);
        let segment = Segment { seq, data, ..peer.segment(ACK) };
        peer.give(&segment).pop().map(|(seen, _)| seen)
    };
    let r = |a: u32, b: u32| (base.wrapping_add(a), base.wrapping_add(b));
    assert_eq!(ranges(&at(&mut peer, 4, b"ef").unwrap()), [r(4, 6)]);
    assert_eq!(ranges(&at(&mut peer, 8, b"ij").unwrap()), [r(8, 10), r(4, 6)]);
    assert_eq!(ranges(&at(&mut peer, 6, b"g").unwrap()), [r(4, 7), r(8, 10)]);
    // RFC 2883: what came twice is told first, once.
    assert_eq!(ranges(&at(&mut peer, 8, b"ij").unwrap()), [r(8, 10), r(8, 10), r(4, 7)]);
    assert_eq!(at(&mut peer, 7, b"h").unwrap().options.sacks(), [r(4, 10)]);
    let filled = at(&mut peer, 0, b"abcd").unwrap();
    assert_eq!((filled.ack, filled.options.sack_count), (base.wrapping_add(10), 0));
    let mut out = [0; 20];
    assert_eq!(peer.stack.recv(id, &mut out, false), Ok(10));
    assert_eq!(&out[..10], b"abcdefghij");
}

#[test]
fn a_fin_past_a_hole_counts_once_the_hole_is_filled() {
    let (mut peer, id) = Peer::open_with(true, None);
    let seq = peer.seq.wrapping_add(1);
    peer.give(&Segment { seq, data: b"b", ..peer.segment(FIN | ACK) });
    assert!(!peer.stack.readiness(id).readable);
    let answer = peer.send(ACK, b"a").pop().unwrap().0;
    assert_eq!(answer.ack, seq.wrapping_add(2));
    assert_eq!(peer.stack.recv(id, &mut [0; 9], false), Ok(2));
    assert_eq!(peer.stack.recv(id, &mut [0; 9], false), Ok(0));
}

#[test]
fn holes_are_bounded() {
    let (mut peer, _) = Peer::open_with(true, None);
    for i in 0..2 * tcp::MAX_ISLANDS as u32 {
        let seq = peer.seq.wrapping_add(1 + 2 * i);
        peer.give(&Segment { seq, data: b"x", ..peer.segment(ACK) });
    }
    assert!(peer.stack.statistics().memory <= 2 * buffer::BUFFER_RESERVED);
}

/// A peer with ten segments of the stack under way; their numbers.
fn ten_under_way(sack: bool) -> (Peer, SocketId, Vec<u32>) {
    let (mut peer, id) = Peer::open_with(sack, None);
    // One round trip of 20 ms is known, and the window of the network is full.
    peer.stack.send(id, &[7; 14600]).unwrap();
    let first: Vec<_> = peer.take();
    assert_eq!(first.len(), 10, "RFC 6928");
    peer.now += 20_000;
    peer.ack = peer.ack.wrapping_add(14600);
    peer.send(ACK, b"");
    peer.stack.send(id, &[8; 14600]).unwrap();
    let seqs = peer.take().iter().map(|(seen, _)| seen.seq).collect();
    (peer, id, seqs)
}

fn acknowledge(peer: &mut Peer, sacks: &[(u32, u32)]) -> Vec<u32> {
    let mut segment = peer.segment(ACK);
    segment.options.sacks[..sacks.len()].copy_from_slice(sacks);
    segment.options.sack_count = sacks.len();
    peer.give(&segment).iter().map(|(seen, _)| seen.seq).collect()
}

#[test]
fn rfc8985_a_hole_under_three_segments_is_sent_again_at_once() {
    let (mut peer, _, seqs) = ten_under_way(true);
    peer.now += 20_000;
    let resent = acknowledge(&mut peer, &[(seqs[1], seqs[4])]);
    assert_eq!(resent, [seqs[0]]);
    // The rest is not sent again.
    peer.ack = seqs[4];
    assert!(acknowledge(&mut peer, &[]).iter().all(|seq| !seqs.contains(seq)));
}

#[test]
fn rfc8985_one_segment_early_is_waited_for() {
    let (mut peer, _, seqs) = ten_under_way(true);
    peer.now += 20_000;
    assert!(acknowledge(&mut peer, &[(seqs[1], seqs[2])]).is_empty());
    // It was only late: nothing is sent again.
    peer.now += 1000;
    peer.ack = seqs[2];
    assert!(acknowledge(&mut peer, &[]).is_empty());
    // One that stays away is sent again after a quarter of the round trip.
    assert!(acknowledge(&mut peer, &[(seqs[3], seqs[4])]).is_empty());
    let late = peer.wait(8_000);
    assert_eq!(late.iter().map(|(seen, _)| seen.seq).collect::<Vec<_>>(), [seqs[2]]);
}

#[test]
fn rfc8985_a_lost_tail_is_probed_before_the_long_timer() {
    let (mut peer, _, seqs) = ten_under_way(true);
    let probe = peer.wait(80_000);
    assert_eq!(probe.iter().map(|(seen, _)| seen.seq).collect::<Vec<_>>(), [seqs[9]]);
    // The probe's SACK shows the loss of all before it.
    let end = seqs[9].wrapping_add(1460);
    assert_eq!(acknowledge(&mut peer, &[(seqs[9], end)])[0], seqs[0]);
}

#[test]
fn a_recovery_without_answers_is_probed_before_the_long_timer() {
    let (mut peer, _, seqs) = ten_under_way(true);
    peer.now += 20_000;
    let end = seqs[9].wrapping_add(1460);
    assert_eq!(acknowledge(&mut peer, &[(seqs[1], end)]), [seqs[0]]);
    // What was sent again is lost again, or its acknowledgement: once more, and only once.
    let probes = peer.wait(150_000);
    assert_eq!(probes.iter().map(|(seen, _)| seen.seq).collect::<Vec<_>>(), [seqs[0]]);
}

/// After a recovery in which the first two of ten segments were sent again, how many segments may
/// be under way once the peer told which of the two came twice: before and after.
fn under_way_after(twice: &[usize]) -> (usize, usize) {
    let (mut peer, id, seqs) = ten_under_way(true);
    peer.now += 20_000;
    assert_eq!(acknowledge(&mut peer, &[(seqs[2], seqs[7])]), [seqs[0], seqs[1]]);
    peer.ack = seqs[9].wrapping_add(1460);
    acknowledge(&mut peer, &[]);
    peer.stack.send(id, &[9; 58400]).unwrap();
    let before = peer.take().len();
    let more = |i: &usize| acknowledge(&mut peer, &[(seqs[*i], seqs[i + 1])]).len();
    (before, before + twice.iter().map(more).sum::<usize>())
}

#[test]
fn rfc3708_a_reduction_that_was_needless_is_taken_back() {
    assert_eq!(under_way_after(&[]), (6, 6));
    assert_eq!(under_way_after(&[1]), (6, 6), "the other was lost");
    assert_eq!(under_way_after(&[0, 1]), (6, 18), "the window before the recovery");
}

#[test]
fn rfc8985_what_the_network_repeats_is_no_needless_resending() {
    let (mut peer, _, seqs) = ten_under_way(true);
    peer.now += 20_000;
    peer.ack = seqs[1];
    acknowledge(&mut peer, &[(seqs[0], seqs[1])]);
    assert!(acknowledge(&mut peer, &[(seqs[2], seqs[3])]).is_empty());
    // Reordering is waited for a quarter of the round trip, as before.
    let late = peer.wait(6_000);
    assert_eq!(late.iter().map(|(seen, _)| seen.seq).collect::<Vec<_>>(), [seqs[1]]);
}

/// What is under way, driven by hand: segments of 1,000 bytes, 20 ms there and back.
struct UnderWay {
    recovery: Recovery,
    now: u64,
}

impl UnderWay {
    /// Sends four segments, of which the second to the last arrive: the first one's number.
    fn four_but_one(&mut self) -> u32 {
        self.now += 100_000;
        let first = self.recovery.snd_nxt;
        (0..4).for_each(|_| self.recovery.sent(1000, false, self.now));
        self.now += 20_000;
        let ranges = [(first + 1000, first + 4000)];
        self.recovery.on_ack(first, &ranges, false, None, self.now);
        first
    }

    /// How long the first of four is waited for after the others; it was only late.
    fn patience_us(&mut self) -> u64 {
        let first = self.four_but_one();
        let patience = self.recovery.reorder_at.unwrap() - self.now;
        self.recovery.on_ack(first + 4000, &[], false, None, self.now);
        patience
    }

    fn recover(&mut self, twice: bool) {
        let first = self.four_but_one();
        self.now = self.recovery.reorder_at.unwrap();
        self.recovery.detect_losses(self.now);
        let lost = self.recovery.next_lost(1000).unwrap();
        assert_eq!(self.recovery.resent(lost, 1000, self.now), (first, 1000, false));
        self.now += 20_000;
        let ranges = if twice { vec![(first, first + 1000)] } else { vec![] };
        self.recovery.on_ack(first + 4000, &ranges, false, None, self.now);
    }
}

#[test]
fn rfc8985_reordering_is_waited_for_longer_and_later_no_longer() {
    let mut under_way = UnderWay { recovery: Recovery::new(1), now: 0 };
    under_way.recovery.begin(1000, true);
    under_way.recovery.take_rtt(20_000);
    // The first late segment shows that there is reordering.
    let first = under_way.recovery.snd_nxt;
    (0..2).for_each(|_| under_way.recovery.sent(1000, false, 0));
    let ranges = [(first + 1000, first + 2000)];
    under_way.recovery.on_ack(first, &ranges, false, None, 20_000);
    under_way.recovery.on_ack(first + 2000, &[], false, None, 21_000);
    assert_eq!(under_way.patience_us(), 5_000);
    under_way.recover(true);
    assert_eq!(under_way.patience_us(), 10_000);
    (0..14).for_each(|_| under_way.recover(false));
    assert_eq!(under_way.patience_us(), 10_000);
    under_way.recover(false);
    assert_eq!(under_way.patience_us(), 5_000);
}

#[test]
fn rfc6582_without_sack_three_duplicates_find_the_loss() {
    let (mut peer, _, seqs) = ten_under_way(false);
    peer.ack = seqs[0];
    assert!(acknowledge(&mut peer, &[]).is_empty());
    assert!(acknowledge(&mut peer, &[]).is_empty());
    assert_eq!(acknowledge(&mut peer, &[]), [seqs[0]]);
    peer.ack = seqs[3];
    assert_eq!(acknowledge(&mut peer, &[])[0], seqs[3], "a partial acknowledgement");
}
