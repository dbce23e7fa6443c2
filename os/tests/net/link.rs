//! Two stacks on a wire with a rate, a delay, a queue and faults, in virtual time. The file that
//! takes this module in has the stack's public names in scope.

// Each program uses a part of it.
#![allow(dead_code)]

use super::*;
use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::BinaryHeap;
use std::hash::Hasher;

pub const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

pub fn stack(last: u8) -> Stack {
    let address = Ipv4Addr::new(10, 0, 0, last);
    let lease = Lease { address, prefix: 24, gateway: None, name_servers: vec![] };
    let mac = [2, 0, 0, 0, 0, last];
    let address = AddressSource::Static(lease);
    Stack::new(Config { mac, mtu: 1500, address, secret: [last; 32] })
}

/// Numbers from a seed (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    /// True in so many of a hundred thousand cases.
    fn happens(&mut self, per_100k: u64) -> bool {
        self.below(100_000) < per_100k
    }
}

/// The faults are in parts of a hundred thousand.
#[derive(Clone, Copy)]
pub struct Faults {
    pub loss: u64,
    pub reorder: u64,
    pub duplicate: u64,
    pub corrupt: u64,
    /// The way's time, without that of sending, and how late a reordered frame may come.
    pub delay_us: u64,
    pub late_us: u64,
}

pub const CLEAN: Faults =
    Faults { loss: 0, reorder: 0, duplicate: 0, corrupt: 0, delay_us: 500, late_us: 1000 };

/// Loss in percent, with 2 % reordering, 1 % duplication and a little corruption.
pub fn lossy(percent: u64) -> Faults {
    Faults { loss: percent * 1000, reorder: 2000, duplicate: 1000, corrupt: 20, ..CLEAN }
}

/// The same on a wire so short that a late frame comes some round trips late.
pub fn near(percent: u64) -> Faults {
    Faults { delay_us: 100, late_us: 2000, ..lossy(percent) }
}

pub struct Link {
    pub stacks: [Stack; 2],
    pub now: u64,
    pub faults: Faults,
    /// One way, without the time that sending takes.
    pub delay_us: u64,
    pub bytes_per_us: u64,
    /// What a full queue takes to be sent; frames past it are lost.
    pub queue_us: u64,
    pub random: Random,
    free_at: [u64; 2],
    under_way: BinaryHeap<Reverse<(u64, u64, usize, Vec<u8>)>>,
    count: u64,
    /// Every frame that was sent, where a test wants to see them: time, sender, frame.
    pub seen: Option<Vec<(u64, usize, Vec<u8>)>>,
}

impl Link {
    /// 200 Mbit/s, 1 ms there and back, a queue of 10 ms.
    pub fn new(faults: Faults, seed: u64) -> Link {
        Link {
            stacks: [stack(1), stack(2)],
            now: 1_000_000,
            faults,
            delay_us: faults.delay_us,
            bytes_per_us: 25,
            queue_us: 10_000,
            random: Random(seed),
            free_at: [0; 2],
            under_way: BinaryHeap::new(),
            count: 0,
            seen: None,
        }
    }

    fn put(&mut self, sender: usize, frame: &[u8]) {
        if let Some(seen) = &mut self.seen {
            seen.push((self.now, sender, frame.to_vec()));
        }
        let begin = self.free_at[sender].max(self.now);
        if begin - self.now > self.queue_us || self.random.happens(self.faults.loss) {
            return;
        }
        self.free_at[sender] = begin + (frame.len() as u64).div_ceil(self.bytes_per_us);
        let copies = 1 + u64::from(self.random.happens(self.faults.duplicate));
        for _ in 0..copies {
            let mut arrival = self.free_at[sender] + self.delay_us;
            if self.random.happens(self.faults.reorder) {
                arrival += 100 + self.random.below(self.faults.late_us - 100);
            }
            let mut frame = frame.to_vec();
            if self.random.happens(self.faults.corrupt) {
                let at = self.random.below(frame.len() as u64) as usize;
                frame[at] ^= 1 << self.random.below(8);
            }
            self.count += 1;
            self.under_way.push(Reverse((arrival, self.count, sender, frame)));
        }
    }

    /// Sends what the stacks hand out now.
    pub fn send(&mut self) {
        for sender in 0..2 {
            let mut frames = Vec::new();
            let now = self.now;
            while self.stacks[sender].transmit(now, 256, &mut |f| frames.push(f.to_vec())) > 0 {}
            for frame in frames {
                self.put(sender, &frame);
            }
        }
    }

    /// Goes on to what happens next, at the latest to `until`.
    pub fn step(&mut self, until: u64) {
        self.send();
        let arrival = self.under_way.peek().map(|Reverse((at, ..))| *at);
        let deadlines = self.stacks.iter().filter_map(|s| s.next_deadline());
        let next = deadlines.chain(arrival).min().unwrap_or(until).min(until);
        self.now = self.now.max(next);
        while self.under_way.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
            let Some(Reverse((_, _, sender, frame))) = self.under_way.pop() else { break };
            self.stacks[1 - sender].receive_frame(&frame, self.now);
        }
        for stack in &mut self.stacks {
            if stack.next_deadline().is_some_and(|at| at <= self.now) {
                stack.poll(self.now);
            }
        }
    }

    pub fn run(&mut self, time_us: u64) {
        let until = self.now + time_us;
        while self.now < until {
            self.step(until);
        }
        self.send();
    }

    /// The first stack listens, the second connects: listener, accepted, connected.
    pub fn connect(&mut self) -> (SocketId, SocketId, SocketId) {
        let listener = self.stacks[0].open(Kind::Stream).unwrap();
        self.stacks[0].bind(listener, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80)).unwrap();
        self.stacks[0].listen(listener, 16).unwrap();
        let (accepted, client) = self.connect_to(listener);
        (listener, accepted, client)
    }

    pub fn connect_to(&mut self, listener: SocketId) -> (SocketId, SocketId) {
        let client = self.stacks[1].open(Kind::Stream).unwrap();
        let target = SocketAddrV4::new(A, 80);
        assert_eq!(self.stacks[1].connect(client, target, self.now), Err(Error::EINPROGRESS));
        let until = self.now + 60_000_000;
        while self.now < until {
            self.step(until);
            if let Ok((accepted, peer)) = self.stacks[0].accept(listener) {
                assert_eq!(*peer.ip(), B);
                return (accepted, client);
            }
        }
        panic!("no connection");
    }
}

/// One direction of a transfer.
struct Flow {
    from: usize,
    sender: SocketId,
    receiver: SocketId,
    total: usize,
    sent: usize,
    received: usize,
    ended: bool,
    sent_hash: DefaultHasher,
    received_hash: DefaultHasher,
    source: Random,
    waiting: Vec<u8>,
}

impl Flow {
    fn new(from: usize, sender: SocketId, receiver: SocketId, total: usize) -> Flow {
        let hash = DefaultHasher::new;
        let (sent_hash, received_hash) = (hash(), hash());
        let (sent, received, ended) = (0, 0, false);
        let (source, waiting) = (Random(77 + from as u64), Vec::new());
        Flow {
            from,
            sender,
            receiver,
            total,
            sent,
            received,
            ended,
            sent_hash,
            received_hash,
            source,
            waiting,
        }
    }

    fn go_on(&mut self, link: &mut Link, buffer: &mut [u8]) {
        while self.sent < self.total {
            if self.waiting.is_empty() {
                let size = (self.total - self.sent).min(64 << 10);
                for _ in 0..size.div_ceil(8) {
                    self.waiting.extend(self.source.next().to_le_bytes());
                }
                self.waiting.truncate(size);
            }
            match link.stacks[self.from].send(self.sender, &self.waiting) {
                Ok(taken) => {
                    for byte in self.waiting.drain(..taken) {
                        self.sent_hash.write_u8(byte);
                    }
                    self.sent += taken;
                    if self.sent == self.total {
                        link.stacks[self.from].shutdown(self.sender, Shutdown::Write).unwrap();
                    }
                }
                Err(error) => {
                    assert_eq!(error, Error::EAGAIN);
                    break;
                }
            }
        }
        while !self.ended {
            match link.stacks[1 - self.from].recv(self.receiver, buffer, false) {
                Ok(0) => self.ended = true,
                Ok(taken) => {
                    for byte in &buffer[..taken] {
                        self.received_hash.write_u8(*byte);
                    }
                    self.received += taken;
                }
                Err(error) => {
                    assert_eq!(error, Error::EAGAIN);
                    break;
                }
            }
        }
    }
}

/// Sends `total` bytes each way asked for over a new connection, compares hashes, closes, and
/// sees that nothing is left; answers the bytes per second of virtual time of each way.
pub fn transfer(faults: Faults, total: [usize; 2], seed: u64) -> f64 {
    let mut link = Link::new(faults, seed);
    let (listener, accepted, client) = link.connect();
    let mut flows =
        [Flow::new(0, accepted, client, total[0]), Flow::new(1, client, accepted, total[1])];
    for flow in flows.iter().filter(|flow| flow.total == 0) {
        link.stacks[flow.from].shutdown(flow.sender, Shutdown::Write).unwrap();
    }
    let mut buffer = vec![0; 64 << 10];
    let begin = link.now;
    let until = begin + 3_600_000_000;
    while flows.iter().any(|flow| !flow.ended) {
        assert!(link.now < until, "no end in an hour");
        for flow in &mut flows {
            flow.go_on(&mut link, &mut buffer);
        }
        link.step(until);
    }
    let time_s = (link.now - begin) as f64 / 1e6;
    for flow in &flows {
        assert_eq!(flow.received, flow.total);
        assert_eq!(flow.sent_hash.finish(), flow.received_hash.finish());
    }
    let now = link.now;
    link.stacks[0].close(accepted, now);
    link.stacks[1].close(client, now);
    link.stacks[0].close(listener, now);
    link.run(200_000_000);
    for stack in &link.stacks {
        let left = stack.statistics();
        assert_eq!((left.connections, left.sockets, left.memory), (0, 0, 0));
    }
    total[0].max(total[1]) as f64 / time_s
}
