//! The stack's promises, each by the rule it comes from, and transfers over a bad link.

#[path = "dhcp.rs"]
mod dhcp;
#[path = "flow.rs"]
mod flow;
#[path = "frames.rs"]
mod frames;
#[path = "limits.rs"]
mod limits;
#[path = "link.rs"]
mod link;
#[path = "loss.rs"]
mod loss;

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
