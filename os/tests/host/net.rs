//! Two stacks joined by a wire that the test holds.

use super::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

fn stack(last: u8) -> Stack {
    let lease = Lease {
        address: Ipv4Addr::new(10, 0, 0, last),
        prefix: 24,
        gateway: None,
        name_servers: vec![],
    };
    let mac = [2, 0, 0, 0, 0, last];
    let address = AddressSource::Static(lease);
    Stack::new(Config { mac, mtu: 1500, address, secret: [last; 32] })
}

struct Wire {
    a: Stack,
    b: Stack,
    now: u64,
    seed: u64,
    loss_percent: u64,
}

impl Wire {
    fn new(loss_percent: u64) -> Wire {
        Wire { a: stack(1), b: stack(2), now: 1_000_000, seed: 7, loss_percent }
    }

    fn lost(&mut self) -> bool {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.seed >> 33) % 100 < self.loss_percent
    }

    fn step(&mut self) {
        self.now += 1000;
        for direction in [false, true] {
            let mut frames = Vec::new();
            let from = if direction { &mut self.a } else { &mut self.b };
            from.poll(self.now);
            from.transmit(self.now, 64, &mut |frame| frames.push(frame.to_vec()));
            for frame in frames {
                if !self.lost() {
                    let to = if direction { &mut self.b } else { &mut self.a };
                    to.receive_frame(&frame, self.now);
                }
            }
        }
    }

    fn connect(&mut self) -> (SocketId, SocketId, SocketId) {
        let listener = self.a.open(Kind::Stream).unwrap();
        self.a.bind(listener, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80)).unwrap();
        self.a.listen(listener, 16).unwrap();
        let client = self.b.open(Kind::Stream).unwrap();
        let target = SocketAddrV4::new(SERVER, 80);
        assert_eq!(self.b.connect(client, target, self.now), Err(Error::EINPROGRESS));
        for _ in 0..20_000 {
            self.step();
            if let Ok((accepted, peer)) = self.a.accept(listener) {
                assert_eq!(*peer.ip(), CLIENT);
                return (listener, accepted, client);
            }
        }
        panic!("no connection");
    }
}

fn transfer(loss_percent: u64, total: usize) {
    let mut wire = Wire::new(loss_percent);
    let (_, server, client) = wire.connect();
    let byte = |i: usize| (i * 31 + i / 251) as u8;
    let (mut sent, mut received) = (0, 0);
    let mut buffer = vec![0; 65536];
    for _ in 0..3_000_000 {
        if sent < total {
            let chunk: Vec<u8> = (sent..total.min(sent + 50_000)).map(byte).collect();
            match wire.b.send(client, &chunk) {
                Ok(n) => sent += n,
                Err(error) => assert_eq!(error, Error::EAGAIN),
            }
        } else {
            let _ = wire.b.shutdown(client, Shutdown::Write);
        }
        wire.step();
        match wire.a.recv(server, &mut buffer, false) {
            Ok(0) => break,
            Ok(n) => {
                for (i, got) in buffer[..n].iter().enumerate() {
                    assert_eq!(*got, byte(received + i));
                }
                received += n;
            }
            Err(error) => assert_eq!(error, Error::EAGAIN),
        }
    }
    assert_eq!(received, total);
    wire.a.close(server, wire.now);
    wire.b.close(client, wire.now);
    for _ in 0..400_000 {
        wire.step();
        if wire.a.statistics().connections + wire.b.statistics().connections == 0 {
            break;
        }
    }
    assert_eq!(wire.a.statistics().connections + wire.b.statistics().connections, 0);
    assert_eq!((wire.a.statistics().sockets, wire.b.statistics().sockets), (1, 0));
    assert_eq!((wire.a.statistics().memory, wire.b.statistics().memory), (0, 0));
}

#[test]
fn a_clean_wire_carries_all_bytes() {
    transfer(0, 3_000_000);
}

#[test]
fn a_lossy_wire_carries_all_bytes() {
    transfer(5, 1_000_000);
}

#[test]
fn a_closed_port_refuses() {
    let mut wire = Wire::new(0);
    let client = wire.b.open(Kind::Stream).unwrap();
    let _ = wire.b.connect(client, SocketAddrV4::new(SERVER, 81), wire.now);
    for _ in 0..10 {
        wire.step();
    }
    assert_eq!(wire.b.take_error(client), Some(Error::ECONNREFUSED));
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

#[test]
fn a_flood_of_syns_is_bounded() {
    let mut wire = Wire::new(0);
    let (_, server, client) = wire.connect();
    for i in 0..20_000u32 {
        let mut frame = vec![0; 14 + 20 + 20];
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        frame[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
        let source = Ipv4Addr::from(0x0a00_0100 + i);
        wire::fill_ipv4(&mut frame[14..], source, SERVER, wire::PROTO_TCP, 1);
        frame[34..38].copy_from_slice(&[4, 0, 0, 80]);
        frame[46] = 0x50;
        frame[47] = wire::SYN;
        let sum = wire::pseudo_sum(source, SERVER, wire::PROTO_TCP, 20);
        wire::fill_checksum(&mut frame[34..], 16, sum);
        wire.a.receive_frame(&frame, wire.now);
    }
    assert!(wire.a.statistics().connections <= MAX_BACKLOG + 1);
    wire.b.send(client, b"still here").unwrap();
    wire.step();
    let mut buffer = [0; 16];
    assert_eq!(wire.a.recv(server, &mut buffer, false), Ok(10));
}

#[test]
fn mutated_frames_never_panic() {
    let mut wire = Wire::new(0);
    let (_, _, client) = wire.connect();
    let mut frames: Vec<Vec<u8>> = Vec::new();
    wire.b.send(client, &[7; 3000]).unwrap();
    wire.b.transmit(wire.now, 64, &mut |frame| frames.push(frame.to_vec()));
    let mut seed = 1u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as usize
    };
    for i in 0..200_000 {
        let mut frame = frames[random() % frames.len()].clone();
        for _ in 0..1 + random() % 4 {
            let at = random() % frame.len();
            frame[at] = random() as u8;
        }
        frame.truncate(1 + random() % 1600);
        wire.a.receive_frame(&frame, wire.now + i);
        wire.a.poll(wire.now + i);
        wire.a.transmit(wire.now, 64, &mut |_| {});
    }
}
