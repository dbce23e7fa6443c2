//! The stack's promises, each by the rule it comes from, and transfers over a bad link.

#[path = "frames.rs"]
mod frames;
#[path = "link.rs"]
mod link;

use super::recovery::Recovery;
use super::wire::*;
use super::*;
use link::*;

/// A peer written by hand: it makes and reads single segments.
struct Peer {
    stack: Stack,
    now: u64,
    port: u16,
    /// Its next sequence number, and the one it expects.
    seq: u32,
    ack: u32,
    window: u16,
    stamp: Option<u32>,
    sack: bool,
}

type Seen = Segment<'static>;

impl Peer {
    fn new() -> Peer {
        let (stamp, window, sack) = (None, 65535, false);
        let mut stack = stack(1);
        // The stack knows the peer's hardware address.
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
        frame.extend([2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
        stack.receive_frame(&frame, 0);
        stack.transmit(0, 64, &mut |_| {});
        Peer { stack, now: 1_000_000, port: 4000, seq: 1000, ack: 0, window, stamp, sack }
    }

    fn segment(&self, flags: u8) -> Segment<'static> {
        let mut options = Options::default();
        options.timestamps = self.stamp.map(|value| (value, 0));
        if flags & SYN != 0 {
            options.mss = Some(1460);
            options.window_scale = Some(0);
            options.sack_permitted = self.sack;
        }
        let (source_port, target_port, window) = (self.port, 80, self.window);
        let (seq, ack, data) = (self.seq, if flags & ACK != 0 { self.ack } else { 0 }, &[][..]);
        Segment { source_port, target_port, seq, ack, flags, window, options, data }
    }

    fn frame(&self, segment: &Segment, source: Ipv4Addr) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.resize(34, 0);
        segment.push(&mut frame);
        frame.extend_from_slice(segment.data);
        fill_ipv4(&mut frame[14..], source, A, PROTO_TCP, 1);
        let sum = pseudo_sum(source, A, PROTO_TCP, frame.len() - 34);
        fill_checksum(&mut frame[34..], 16, sum);
        frame
    }

    /// What the stack sends now, as segments and their data.
    fn take(&mut self) -> Vec<(Seen, Vec<u8>)> {
        let mut seen = Vec::new();
        if self.stack.next_deadline().is_some_and(|at| at <= self.now) {
            self.stack.poll(self.now);
        }
        self.stack.transmit(self.now, 4096, &mut |frame| {
            if frame[12..14] == [8, 0] && frame[23] == PROTO_TCP {
                let packet = parse_ipv4(&frame[14..]).unwrap();
                let segment = parse_tcp(&packet).unwrap();
                seen.push((Segment { data: &[], ..segment }, segment.data.to_vec()));
            }
        });
        seen
    }

    fn give(&mut self, segment: &Segment) -> Vec<(Seen, Vec<u8>)> {
        let frame = self.frame(segment, B);
        self.stack.receive_frame(&frame, self.now);
        self.take()
    }

    fn send(&mut self, flags: u8, data: &[u8]) -> Vec<(Seen, Vec<u8>)> {
        let segment = Segment { data, ..self.segment(flags) };
        self.seq = self.seq.wrapping_add(segment.length());
        self.give(&segment)
    }

    fn wait(&mut self, time_us: u64) -> Vec<(Seen, Vec<u8>)> {
        let until = self.now + time_us;
        let mut seen = self.take();
        while let Some(at) = self.stack.next_deadline().filter(|at| *at <= until) {
            self.now = at.max(self.now + 1);
            seen.extend(self.take());
        }
        self.now = until;
        seen
    }

    fn listen(&mut self) -> SocketId {
        let id = self.stack.open(Kind::Stream).unwrap();
        self.stack.bind(id, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80)).unwrap();
        self.stack.listen(id, 8).unwrap();
        id
    }

    /// The peer connects to a new listener.
    fn open() -> (Peer, SocketId) {
        Peer::open_with(false, None)
    }

    fn open_with(sack: bool, stamp: Option<u32>) -> (Peer, SocketId) {
        let mut peer = Peer::new();
        (peer.sack, peer.stamp) = (sack, stamp);
        let listener = peer.listen();
        let answer = peer.send(SYN, b"").pop().unwrap().0;
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, 1001));
        peer.ack = answer.seq.wrapping_add(1);
        peer.now += 20_000;
        peer.send(ACK, b"");
        let id = peer.stack.accept(listener).unwrap().0;
        (peer, id)
    }

    fn error(&mut self, id: SocketId) -> Option<Error> {
        self.stack.take_error(id)
    }
}

fn ranges(segment: &Seen) -> Vec<(u32, u32)> {
    segment.options.sacks().to_vec()
}

#[test]
fn transfers_at_each_loss_rate_carry_all_bytes() {
    for (faults, total) in [(CLEAN, 8), (lossy(0), 4), (lossy(1), 4), (lossy(5), 2)] {
        let rate = transfer(faults, [total << 20, total << 20], 5) / 1048576.0;
        println!("loss {} per 100,000: {rate:.2} MiB/s of virtual time", faults.loss);
        assert!(rate > if faults.loss > 2000 { 1.0 } else { 5.0 });
    }
}

#[test]
fn transfers_end_well_for_many_seeds() {
    for seed in 1..40 {
        transfer(lossy(seed % 12), [60_000, 90_000], seed);
    }
}

#[test]
fn mutated_frames_do_no_harm() {
    let tally = frames::run(100_000, 3);
    assert!(tally.frames == 100_000 && tally.connections > 0);
}

#[test]
fn rfc9293_closed_port_answers_with_a_reset() {
    let mut peer = Peer::new();
    let answer = peer.send(SYN, b"").pop().unwrap().0;
    assert_eq!((answer.flags, answer.seq, answer.ack), (RST | ACK, 0, 1001));
    (peer.ack, peer.port) = (77, 4001);
    let answer = peer.send(ACK, b"x").pop().unwrap().0;
    assert_eq!((answer.flags, answer.seq), (RST, 77));
    assert!(peer.send(RST, b"").is_empty());
}

#[test]
fn rfc9293_refused_and_unreachable_end_a_connect() {
    for (icmp, expected) in
        [(None, Error::ECONNREFUSED), (Some(3), Error::ECONNREFUSED), (Some(1), Error::ENETUNREACH)]
    {
        let mut peer = Peer::new();
        let id = peer.stack.open(Kind::Stream).unwrap();
        let _ = peer.stack.connect(id, SocketAddrV4::new(B, 4000), peer.now);
        let syn = peer.take().pop().unwrap().0;
        if let Some(code) = icmp {
            // The quote is of the packet that was sent: its header and eight bytes.
            let mut quote = peer.frame(&syn, A)[14..42].to_vec();
            quote[16..20].copy_from_slice(&B.octets());
            quote[24..28].copy_from_slice(&syn.seq.to_be_bytes());
            let frame = icmp_frame(3, code, 0, &quote);
            peer.stack.receive_frame(&frame, peer.now);
        } else {
            let mut reset = peer.segment(RST | ACK);
            reset.target_port = syn.source_port;
            reset.ack = syn.seq.wrapping_add(1);
            peer.give(&reset);
        }
        assert_eq!(peer.error(id), Some(expected));
    }
}

fn icmp_frame(kind: u8, code: u8, mtu: u16, rest: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.resize(34, 0);
    frame.extend([kind, code, 0, 0, 0, 0]);
    frame.extend(mtu.to_be_bytes());
    frame.extend_from_slice(rest);
    fill_ipv4(&mut frame[14..], B, A, PROTO_ICMP, 1);
    fill_checksum(&mut frame[34..], 2, 0);
    frame
}

#[test]
fn rfc9293_both_ends_may_open_at_once() {
    let mut peer = Peer::new();
    let id = peer.stack.open(Kind::Stream).unwrap();
    peer.stack.bind(id, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80)).unwrap();
    let _ = peer.stack.connect(id, SocketAddrV4::new(B, 4000), peer.now);
    let syn = peer.take().pop().unwrap().0;
    let answer = peer.send(SYN, b"").pop().unwrap().0;
    assert_eq!((answer.flags, answer.seq), (SYN | ACK, syn.seq));
    peer.ack = syn.seq.wrapping_add(1);
    peer.send(ACK, b"hello");
    assert_eq!(peer.stack.recv(id, &mut [0; 9], false), Ok(5));
}

#[test]
fn rfc9293_both_answers_of_a_simultaneous_opening_end_it() {
    let mut peer = Peer::new();
    let id = peer.stack.open(Kind::Stream).unwrap();
    peer.stack.bind(id, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80)).unwrap();
    let _ = peer.stack.connect(id, SocketAddrV4::new(B, 4000), peer.now);
    let syn = peer.take().pop().unwrap().0;
    peer.send(SYN, b"");
    // The peer answers as we did: with its number again.
    peer.seq -= 1;
    peer.ack = syn.seq.wrapping_add(1);
    for (answer, _) in peer.send(SYN | ACK, b"") {
        assert_eq!(answer.flags & SYN, 0);
    }
    assert_eq!(peer.stack.send(id, b"hello"), Ok(5));
}

#[test]
fn a_connection_to_itself_opens_and_becomes_quiet() {
    let mut stack = Peer::new().stack;
    let here = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7000);
    let id = stack.open(Kind::Stream).unwrap();
    stack.bind(id, here).unwrap();
    let _ = stack.connect(id, here, 1_000_000);
    stack.poll(1_000_000);
    assert!(stack.next_deadline().is_none_or(|deadline| deadline > 1_000_000));
    assert_eq!(stack.send(id, b"hello"), Ok(5));
    stack.poll(1_000_000);
    assert_eq!(stack.recv(id, &mut [0; 9], false), Ok(5));
}

#[test]
fn rfc9293_close_goes_through_its_states() {
    // The peer closes first.
    let (mut peer, id) = Peer::open();
    let answer = peer.send(FIN | ACK, b"end").pop().unwrap().0;
    assert_eq!(answer.ack, peer.seq);
    assert_eq!(peer.stack.recv(id, &mut [0; 9], false), Ok(3));
    assert_eq!(peer.stack.recv(id, &mut [0; 9], false), Ok(0));
    peer.stack.close(id, peer.now);
    let fin = peer.take().pop().unwrap().0;
    assert_eq!(fin.flags & FIN, FIN);
    peer.ack = fin.seq.wrapping_add(1);
    peer.send(ACK, b"");
    assert_eq!(peer.stack.statistics().connections, 0);
    // We close first, and wait out the time.
    let (mut peer, id) = Peer::open();
    peer.stack.close(id, peer.now);
    peer.ack = peer.take().pop().unwrap().0.seq.wrapping_add(1);
    peer.send(ACK, b"");
    assert_eq!(peer.send(FIN | ACK, b"").len(), 1);
    assert_eq!(peer.stack.statistics().connections, 1);
    peer.seq -= 1;
    assert_eq!(peer.send(FIN | ACK, b"").len(), 1, "a FIN again is acknowledged again");
    peer.send(RST, b"");
    assert_eq!(peer.stack.statistics().connections, 1, "RFC 1337");
    peer.wait(61_000_000);
    assert_eq!(peer.stack.statistics().connections, 0);
}

#[test]
fn rfc9293_a_new_syn_takes_the_place_of_time_wait() {
    let (mut peer, id) = Peer::open();
    peer.stack.close(id, peer.now);
    let old = peer.take().pop().unwrap().0.seq;
    peer.ack = old.wrapping_add(1);
    peer.send(FIN | ACK, b"");
    peer.seq += 5;
    let answer = peer.send(SYN, b"").pop().unwrap().0;
    assert_eq!(answer.flags, SYN | ACK);
    assert!(tcp::after(answer.seq, old));
}

#[test]
fn rfc9293_data_after_close_is_answered_with_a_reset() {
    let (mut peer, id) = Peer::open();
    peer.stack.close(id, peer.now);
    peer.take();
    let answer = peer.send(ACK, b"late").pop().unwrap().0;
    assert_eq!(answer.flags & RST, RST);
    assert_eq!(peer.stack.statistics().connections, 0);
}

#[test]
fn rfc6528_initial_numbers_differ_by_peer_and_grow_with_time() {
    let mut numbers = Vec::new();
    for (port, now) in [(4000, 1_000_000), (4001, 1_000_000), (4000, 1_400_000)] {
        let mut peer = Peer::new();
        peer.listen();
        (peer.port, peer.now) = (port, now);
        numbers.push(peer.send(SYN, b"").pop().unwrap().0.seq);
    }
    assert_ne!(numbers[0], numbers[1]);
    assert_eq!(numbers[2].wrapping_sub(numbers[0]), 100_000);
}

#[test]
fn rfc5961_only_the_exact_number_resets() {
    let (mut peer, id) = Peer::open();
    let mut reset = peer.segment(RST);
    reset.seq = peer.seq.wrapping_add(100);
    let challenge = peer.give(&reset);
    assert_eq!((challenge.len(), challenge[0].0.flags), (1, ACK));
    assert!(peer.give(&reset).is_empty(), "challenges are limited");
    reset.seq = peer.seq.wrapping_sub(1);
    assert!(peer.give(&reset).is_empty());
    assert_eq!(peer.error(id), None);
    peer.send(RST, b"");
    assert_eq!(peer.error(id), Some(Error::ECONNRESET));
}

#[test]
fn rfc5961_a_syn_and_a_strange_ack_are_challenged() {
    let (mut peer, id) = Peer::open();
    let mut syn = peer.segment(SYN);
    syn.seq = peer.seq.wrapping_add(10);
    assert_eq!(peer.give(&syn)[0].0.flags, ACK);
    peer.now += 1_000_000;
    let mut strange = peer.segment(ACK);
    strange.ack = peer.ack.wrapping_add(1);
    strange.data = b"forged";
    assert_eq!(peer.give(&strange)[0].0.flags, ACK);
    strange.ack = peer.ack.wrapping_sub(70_000);
    assert!(peer.give(&strange).is_empty());
    assert_eq!(peer.stack.recv(id, &mut [0; 9], false), Err(Error::EAGAIN));
}

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

#[test]
fn rfc6298_the_timer_is_at_least_200_ms_and_doubles() {
    let (mut peer, id) = Peer::open();
    peer.stack.send(id, b"lost").unwrap();
    peer.take();
    let mut times = Vec::new();
    for _ in 0..4 {
        let begin = peer.now;
        while peer.take().is_empty() {
            peer.now += 1000;
        }
        times.push((peer.now - begin) / 100_000);
    }
    assert_eq!(times, [2, 4, 8, 16]);
    peer.wait(600_000_000);
    assert_eq!(peer.error(id), Some(Error::ETIMEDOUT));
}

#[test]
fn rfc6298_a_connect_gives_up() {
    let mut peer = Peer::new();
    let id = peer.stack.open(Kind::Stream).unwrap();
    let _ = peer.stack.connect(id, SocketAddrV4::new(B, 9), peer.now);
    let syns = peer.wait(100_000_000);
    assert_eq!(syns.len(), 6);
    assert_eq!(peer.error(id), Some(Error::ETIMEDOUT));
}

#[test]
fn rfc7323_windows_are_scaled_and_clocks_echoed() {
    let (mut peer, id) = Peer::open_with(true, Some(500));
    peer.stack.send(id, b"x").unwrap();
    let seen = peer.take().pop().unwrap().0;
    assert_eq!(seen.options.timestamps.unwrap().1, 500);
    assert_eq!(usize::from(seen.window) << 4, RECEIVE_BUFFER);
    // PAWS: an older clock, and a segment without one, are not taken.
    peer.stamp = Some(499);
    let answer = peer.send(ACK, b"old").pop().unwrap().0;
    assert_eq!(answer.ack, peer.seq.wrapping_sub(3));
    peer.stamp = None;
    assert!(peer.send(ACK, b"none").is_empty());
    assert_eq!(peer.stack.recv(id, &mut [0; 9], false), Err(Error::EAGAIN));
}

#[test]
fn rfc7323_a_peer_without_options_gets_none() {
    let mut peer = Peer::new();
    peer.listen();
    let syn = Segment { options: Options::default(), ..peer.segment(SYN) };
    peer.seq += 1;
    let answer = peer.give(&syn).pop().unwrap().0;
    assert_eq!(answer.options, Options { mss: Some(1460), ..Options::default() });
    peer.ack = answer.seq.wrapping_add(1);
    assert!(peer.send(ACK, b"").is_empty());
}

#[test]
fn rfc1122_acknowledgements_wait_for_40_ms_or_a_second_segment() {
    let (mut peer, _) = Peer::open();
    assert!(peer.send(ACK, b"one").is_empty());
    assert!(peer.wait(39_000).is_empty());
    assert_eq!(peer.wait(2_000).len(), 1);
    assert!(peer.send(ACK, b"two").is_empty());
    assert_eq!(peer.send(ACK, b"three").len(), 1);
}

#[test]
fn rfc9293_a_closed_window_is_probed_without_end() {
    let (mut peer, id) = Peer::open();
    peer.window = 0;
    peer.send(ACK, b"");
    peer.stack.send(id, b"waiting").unwrap();
    assert!(peer.take().is_empty());
    let mut probes = 0;
    for _ in 0..20 {
        let seen = peer.wait(60_000_000);
        assert!(seen.iter().all(|(_, data)| data == b"w"));
        probes += seen.len();
        peer.send(ACK, b"");
    }
    assert!(probes >= 20 && peer.error(id).is_none());
    peer.window = 1000;
    let mut data = peer.send(ACK, b"");
    peer.ack = peer.ack.wrapping_add(1);
    data.extend(peer.send(ACK, b""));
    let data: Vec<u8> = data.into_iter().flat_map(|(_, data)| data).collect();
    assert_eq!(data, b"waiting");
}

#[test]
fn rfc9293_our_window_closes_and_opens_by_whole_steps() {
    let (mut peer, id) = Peer::open();
    let mut window = 0;
    let mut told = Vec::new();
    for _ in 0..RECEIVE_BUFFER / 1024 {
        for (seen, _) in peer.send(ACK, &[1; 1024]) {
            window = usize::from(seen.window) << 4;
        }
    }
    assert_eq!(window, 0);
    peer.send(ACK, b"more");
    peer.seq -= 4;
    let mut out = vec![0; 500];
    for _ in 0..8 {
        peer.stack.recv(id, &mut out, false).unwrap();
        told.extend(peer.take().iter().map(|(seen, _)| seen.window));
    }
    assert_eq!(told.len(), 1);
    assert!(usize::from(told[0]) << 4 >= 2 * 1460);
}

#[test]
fn rfc1122_keep_alive_ends_a_dead_connection() {
    let (mut peer, id) = Peer::open();
    peer.stack.set_option(id, SocketOption::KeepAlive(true)).unwrap();
    let probe = peer.wait(76_000_000);
    assert_eq!((probe.len(), probe[0].0.seq), (1, peer.ack.wrapping_sub(1)));
    peer.send(ACK, b"");
    assert_eq!(peer.wait(76_000_000).len(), 1, "an answer starts the count anew");
    peer.wait(76_000_000 * 9);
    assert_eq!(peer.error(id), Some(Error::ETIMEDOUT));
}

#[test]
fn rfc1122_keep_alive_asked_for_late_probes_once() {
    let (mut peer, id) = Peer::open();
    assert!(peer.wait(3_600_000_000).is_empty());
    peer.stack.set_option(id, SocketOption::KeepAlive(true)).unwrap();
    assert_eq!(peer.wait(70_000_000).len(), 1);
    assert_eq!(peer.error(id), None);
}

#[test]
fn a_closed_connection_holds_no_room() {
    let (mut peer, id) = Peer::open();
    peer.send(FIN | ACK, &[1; 1400]);
    assert!(peer.stack.statistics().memory > 0);
    peer.stack.close(id, peer.now);
    assert_eq!(peer.stack.statistics().memory, 0);
    assert_eq!(peer.stack.statistics().connections, 1);
}

#[test]
fn rfc826_a_neighbour_with_a_new_address_is_found_again() {
    let (mut peer, _) = Peer::open();
    let id = peer.stack.open(Kind::Datagram).unwrap();
    let mut asked = Vec::new();
    for _ in 0..150 {
        peer.now += 1_000_000;
        let _ = peer.stack.send_to(id, b"x", Some(SocketAddrV4::new(B, 9)), peer.now);
        peer.stack.transmit(peer.now, 9, &mut |frame| {
            if frame[12..14] == [8, 6] {
                asked.push(frame[..6] == [255; 6]);
            }
        });
    }
    assert!(!asked[0] && asked[asked.len() - 1]);
}

#[test]
fn rfc896_small_pieces_wait_unless_asked_not_to() {
    let (mut peer, id) = Peer::open();
    peer.stack.send(id, b"a").unwrap();
    assert_eq!(peer.take().len(), 1);
    peer.stack.send(id, b"b").unwrap();
    assert!(peer.take().is_empty());
    peer.stack.set_option(id, SocketOption::NoDelay(true)).unwrap();
    peer.stack.send(id, b"c").unwrap();
    assert_eq!(peer.take()[0].1, b"bc");
}

#[test]
fn rfc1191_a_smaller_path_makes_smaller_segments() {
    let (mut peer, id) = Peer::open();
    peer.stack.send(id, &[3; 3000]).unwrap();
    let first = peer.take();
    let mut quote = peer.frame(&first[0].0, A)[14..42].to_vec();
    quote[12..16].copy_from_slice(&A.octets());
    quote[16..20].copy_from_slice(&B.octets());
    let frame = icmp_frame(3, 4, 1000, &quote);
    peer.stack.receive_frame(&frame, peer.now);
    let again: Vec<usize> = peer.take().iter().map(|(_, data)| data.len()).collect();
    assert!(again.iter().all(|size| *size <= 960) && again.iter().sum::<usize>() >= 2920);
}

#[test]
fn rfc791_fragments_and_damaged_packets_are_refused() {
    let mut peer = Peer::new();
    peer.listen();
    let good = peer.frame(&peer.segment(SYN), B);
    for (at, value) in [(20, 0x20), (21, 1), (14, 0x44), (24, 9), (40, 9), (47, 0x12)] {
        let mut bad = good.clone();
        bad[at] = value;
        if at == 20 || at == 21 {
            frames::mend(&mut bad);
        }
        peer.stack.receive_frame(&bad, peer.now);
        assert!(peer.take().is_empty());
    }
    assert_eq!(peer.stack.statistics().frames_dropped, 6);
    // Nor does anybody outside have our addresses.
    for source in [A, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 0, 0, 255)] {
        let frame = peer.frame(&peer.segment(SYN), source);
        peer.stack.receive_frame(&frame, peer.now);
        assert!(peer.take().is_empty());
    }
}

#[test]
fn rfc792_echo_is_answered_and_a_closed_udp_port_told() {
    let mut peer = Peer::new();
    let frame = icmp_frame(8, 0, 5, b"ping");
    peer.stack.receive_frame(&frame, peer.now);
    let mut seen = Vec::new();
    peer.stack.transmit(peer.now, 9, &mut |frame| seen.push(frame.to_vec()));
    assert_eq!((seen[0][34], &seen[0][38..]), (0, &frame[38..]));
    let mut datagram = icmp_frame(0, 9, 9, b"12345678");
    datagram[34..42].copy_from_slice(&[0, 7, 0, 9, 0, 16, 0, 0]);
    datagram[23] = PROTO_UDP;
    frames::mend(&mut datagram);
    for _ in 0..50 {
        peer.stack.receive_frame(&datagram, peer.now);
    }
    let mut seen = Vec::new();
    peer.stack.transmit(peer.now, 99, &mut |frame| seen.push(frame.to_vec()));
    assert_eq!((seen.len(), &seen[0][34..36]), (1, &[3, 3][..]), "and not without limit");
    assert_eq!(seen[0][42..70], datagram[14..42]);
}

#[test]
fn udp_carries_datagrams_and_tells_of_a_closed_port() {
    let mut link = Link::new(CLEAN, 3);
    let [server, client] =
        [0, 1].map(|side: usize| link.stacks[side].open(Kind::Datagram).unwrap());
    let target = SocketAddrV4::new(A, 53);
    link.stacks[0].bind(server, target).unwrap();
    link.stacks[1].connect(client, target, 0).unwrap();
    link.stacks[1].send_to(client, b"name?", None, 0).unwrap();
    link.run(10_000);
    let mut out = [0; 64];
    let (size, from) = link.stacks[0].recv_from(server, &mut out, false).unwrap();
    assert_eq!(&out[..size], b"name?");
    link.stacks[0].send_to(server, b"address", from, 0).unwrap();
    link.run(10_000);
    assert_eq!(link.stacks[1].recv(client, &mut out, false), Ok(7));
    let now = link.now;
    link.stacks[0].close(server, now);
    link.stacks[1].send_to(client, b"name?", None, now).unwrap();
    link.run(10_000);
    assert_eq!(link.stacks[1].recv(client, &mut out, false), Err(Error::ECONNREFUSED));
    assert_eq!(link.stacks[0].statistics().memory, 0);
}

#[test]
fn loopback_connects_without_a_wire() {
    let mut only = stack(1);
    let listener = only.open(Kind::Stream).unwrap();
    only.bind(listener, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    only.listen(listener, 4).unwrap();
    let target = only.local_address(listener).unwrap();
    let client = only.open(Kind::Stream).unwrap();
    assert_eq!(only.connect(client, target, 5), Err(Error::EINPROGRESS));
    only.poll(6);
    let (server, _) = only.accept(listener).unwrap();
    assert_eq!(only.send(server, b"hello"), Ok(5));
    only.poll(7);
    let mut buffer = [0; 16];
    assert_eq!(only.recv(client, &mut buffer, false), Ok(5));
    assert_eq!(&buffer[..5], b"hello");
}

/// SYNs from ever new addresses, `count` of them from the `from`th.
fn flood(stack: &mut Stack, peer: &mut Peer, from: u32, count: u32, now: u64) {
    for i in from..from + count {
        peer.port = 1024 + (i % 60_000) as u16;
        let source = Ipv4Addr::from(0x0a00_0003 + i % 200);
        let frame = peer.frame(&peer.segment(SYN), source);
        stack.receive_frame(&frame, now);
    }
}

#[test]
fn a_flood_of_syns_leaves_connections_working() {
    let mut link = Link::new(CLEAN, 9);
    let (listener, server, client) = link.connect();
    let mut peer = Peer::new();
    let mut out = vec![0; 1 << 16];
    let (mut received, mut from) = (0, 0);
    let chunk = [5; 4096];
    let begin = link.now;
    // Two seconds at 10,000 in a second: ten in each millisecond.
    while link.now < begin + 2_000_000 {
        let now = link.now;
        flood(&mut link.stacks[0], &mut peer, from, 10, now);
        from += 10;
        let _ = link.stacks[1].send(client, &chunk);
        link.run(1000);
        received += link.stacks[0].recv(server, &mut out, false).unwrap_or(0);
        let now = link.stacks[0].statistics();
        assert!(now.handshakes <= MAX_HANDSHAKES && now.connections <= 2);
        if from == 10_000 {
            let (accepted, second) = link.connect_to(listener);
            let now = link.now;
            link.stacks[0].close(accepted, now);
            link.stacks[1].close(second, now);
        }
    }
    assert!(received > 1500 * 4096, "{received}");
    link.run(100_000_000);
    assert_eq!(link.stacks[0].statistics().handshakes, 0);
}

#[test]
fn the_backlog_and_the_number_of_connections_are_bounded() {
    let mut peer = Peer::new();
    let listener = peer.listen();
    let mut held = Vec::new();
    for port in 0..MAX_CONNECTIONS as u16 + 50 {
        peer.port = 2000 + port;
        let syn = peer.segment(SYN);
        let answer = peer.give(&syn).pop().unwrap().0;
        let ack = answer.seq.wrapping_add(1);
        peer.give(&Segment { seq: syn.seq + 1, ack, ..peer.segment(ACK) });
        if held.len() < MAX_CONNECTIONS - 8 {
            held.push(peer.stack.accept(listener).unwrap().0);
        }
    }
    assert_eq!(peer.stack.statistics().connections, MAX_CONNECTIONS);
    assert_eq!(core::iter::from_fn(|| peer.stack.accept(listener).ok()).count(), 8);
    // Those that only wait for the peer's end make room for new ones.
    for id in held.drain(..100) {
        peer.stack.close(id, peer.now);
    }
    assert_eq!(peer.stack.statistics().connections, MAX_CONNECTIONS);
}

#[test]
fn memory_is_bounded_and_nobody_is_starved() {
    let mut link = Link::new(CLEAN, 4);
    link.bytes_per_us = 1000;
    let (listener, server, client) = link.connect();
    let mut pairs = vec![(server, client)];
    let chunk = vec![1; 1 << 20];
    // Connections that nobody reads from, each filled to the brim on both sides.
    for _ in 0..200 {
        pairs.push(link.connect_to(listener));
        let (accepted, connected) = pairs[pairs.len() - 1];
        let _ = link.stacks[1].send(connected, &chunk);
        let _ = link.stacks[0].send(accepted, &chunk);
        link.run(20_000);
    }
    for stack in &link.stacks {
        let held = stack.statistics().memory;
        assert!(held > buffer::MEMORY_SHARED / 2 && held <= MAX_SOCKET_MEMORY, "{held}");
    }
    // One that is read goes on.
    let (accepted, connected) = link.connect_to(listener);
    let mut out = vec![0; 1 << 16];
    let (mut sent, mut received) = (0, 0);
    let until = link.now + 60_000_000;
    while received < 1 << 20 && link.now < until {
        if sent < 1 << 20 {
            sent += link.stacks[1].send(connected, &chunk[sent..]).unwrap_or(0);
        }
        link.step(until);
        received += link.stacks[0].recv(accepted, &mut out, false).unwrap_or(0);
    }
    assert_eq!(received, 1 << 20);
}

#[test]
fn neighbours_are_bounded_and_the_known_stay() {
    let mut link = Link::new(CLEAN, 8);
    let (_, server, client) = link.connect();
    let id = link.stacks[0].open(Kind::Datagram).unwrap();
    for i in 0..2000u32 {
        let target = Ipv4Addr::from(0x0a00_0003 + i % 250);
        let _ = link.stacks[0].send_to(id, b"x", Some(SocketAddrV4::new(target, 9)), link.now + 1);
    }
    link.send();
    link.stacks[0].send(server, b"still").unwrap();
    link.run(10_000);
    assert_eq!(link.stacks[1].recv(client, &mut [0; 9], false), Ok(5));
}

#[test]
fn events_name_a_socket_once() {
    let (mut peer, id) = Peer::open();
    while peer.stack.take_event().is_some() {}
    peer.send(ACK, b"a");
    peer.send(ACK, b"b");
    assert_eq!(peer.stack.take_event(), Some(id));
    assert_eq!(peer.stack.take_event(), None);
}

/// The messages of a DHCP client, and a server's answers.
struct Dhcp {
    stack: Stack,
    now: u64,
}

impl Dhcp {
    fn new() -> Dhcp {
        let address = AddressSource::Dhcp;
        let config = Config { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, address, secret: [5; 32] };
        Dhcp { stack: Stack::new(config), now: 1_000_000 }
    }

    /// The next messages within `time_us`: when, their kind, whether broadcast, and the frame.
    fn wait(&mut self, time_us: u64) -> Vec<(u64, u8, bool, Vec<u8>)> {
        let until = self.now + time_us;
        let mut seen = Vec::new();
        while let Some(at) = self.stack.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.stack.poll(self.now);
            let now = self.now;
            self.stack.transmit(now, 64, &mut |frame| {
                if frame[12..14] == [8, 6] {
                    return;
                }
                let message = &frame[42..];
                assert_eq!((frame[36..38].to_vec(), message[236]), (vec![0, 67], 99));
                seen.push((now, message[242], frame[..6] == [255; 6], frame.to_vec()));
            });
        }
        self.now = until;
        seen
    }

    fn answer(&mut self, question: &[u8], kind: u8, address: u8) {
        let mut data = vec![0, 67, 0, 68, 0, 0, 0, 0, 2, 1, 6, 0];
        data.extend(&question[46..50]);
        data.extend([0; 8]);
        data.extend([10, 0, 0, address, 10, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1]);
        data.resize(8 + 236, 0);
        data.extend([99, 130, 83, 99, 53, 1, kind, 54, 4, 10, 0, 0, 2, 1, 4, 255, 255, 0, 0]);
        data.extend([3, 4, 10, 0, 0, 9, 6, 4, 9, 9, 9, 9, 51, 4, 0, 0, 0x0e, 0x10, 255]);
        let length = (data.len() as u16).to_be_bytes();
        data[4..6].copy_from_slice(&length);
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.resize(34, 0);
        frame.extend(data);
        fill_ipv4(&mut frame[14..], B, Ipv4Addr::BROADCAST, PROTO_UDP, 1);
        frames::mend(&mut frame);
        self.stack.receive_frame(&frame, self.now);
    }

    fn bind(&mut self) {
        let discover = self.wait(1).pop().unwrap();
        assert_eq!((discover.1, discover.2), (1, true));
        self.answer(&discover.3, 2, 7);
        let request = self.wait(1).pop().unwrap();
        assert_eq!((request.1, request.2), (3, true));
        self.answer(&request.3, 5, 7);
        self.stack.take_lease_change();
    }
}

#[test]
fn rfc2131_a_lease_is_taken_and_told() {
    let mut dhcp = Dhcp::new();
    let discover = dhcp.wait(1).pop().unwrap();
    assert_eq!(dhcp.stack.take_lease_change(), Some(None));
    let again = dhcp.wait(8_000_000);
    assert!(again.len() >= 2 && again.iter().all(|(_, kind, ..)| *kind == 1));
    dhcp.answer(&discover.3, 2, 7);
    assert!(dhcp.wait(1).is_empty(), "an answer to an old question");
    let last = &again[again.len() - 1].3;
    dhcp.answer(last, 2, 7);
    let request = dhcp.wait(1).pop().unwrap();
    dhcp.answer(&request.3, 5, 7);
    let lease = dhcp.stack.take_lease_change().unwrap().unwrap();
    assert_eq!((lease.address, lease.prefix), (Ipv4Addr::new(10, 0, 0, 7), 16));
    assert_eq!(lease.gateway, Some(Ipv4Addr::new(10, 0, 0, 9)));
    assert_eq!(lease.resolv_conf(), "nameserver 9.9.9.9\n");
    assert_eq!(lease.hosts("me"), "127.0.0.1 localhost\n10.0.0.7 me\n");
}

#[test]
fn rfc2131_a_lease_is_renewed_rebound_and_lost() {
    let mut dhcp = Dhcp::new();
    dhcp.bind();
    // Half of 3,600 s: to the server alone, whose hardware address is not known yet.
    assert!(dhcp.wait(1_799_000_000).is_empty());
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    frame.extend([2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 7]);
    dhcp.stack.receive_frame(&frame, dhcp.now);
    let renewals = dhcp.wait(1_300_000_000);
    assert!(renewals.len() >= 2 && renewals.len() < 10);
    assert!(renewals.iter().all(|(_, kind, broadcast, _)| *kind == 3 && !broadcast));
    dhcp.answer(&renewals[0].3, 5, 7);
    assert!(dhcp.wait(1_700_000_000).is_empty(), "an answer begins the time anew");
    // Without answers: the server alone, then everybody, then the end.
    let all = dhcp.wait(1_850_000_000);
    let first = all.iter().position(|(.., broadcast, _)| *broadcast).unwrap();
    assert!(first > 0 && all[first..].iter().all(|(.., broadcast, _)| *broadcast));
    assert_eq!(dhcp.stack.take_lease_change(), None);
    let restart = dhcp.wait(100_000_000);
    assert!(restart.iter().any(|(_, kind, ..)| *kind == 1));
    assert_eq!(dhcp.stack.take_lease_change(), Some(None));
}

#[test]
fn rfc2131_a_refusal_starts_again() {
    let mut dhcp = Dhcp::new();
    dhcp.bind();
    let renewal = dhcp.wait(3_400_000_000).pop().unwrap();
    dhcp.answer(&renewal.3, 6, 7);
    assert_eq!(dhcp.stack.take_lease_change(), Some(None));
    assert!(dhcp.wait(20_000_000).iter().all(|(_, kind, ..)| *kind == 1));
}

#[test]
fn an_address_that_changes_ends_its_connections() {
    let mut dhcp = Dhcp::new();
    dhcp.bind();
    let id = dhcp.stack.open(Kind::Stream).unwrap();
    let target = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 80);
    let _ = dhcp.stack.connect(id, target, dhcp.now);
    dhcp.stack.transmit(dhcp.now, 64, &mut |_| {});
    let renewal = dhcp.wait(3_400_000_000).pop().unwrap();
    let id = dhcp.stack.open(Kind::Stream).unwrap();
    let _ = dhcp.stack.connect(id, target, dhcp.now);
    dhcp.answer(&renewal.3, 5, 8);
    assert_eq!(dhcp.stack.take_error(id), Some(Error::EADDRNOTAVAIL));
}
