//! Mutated frames into live stacks: frames that two busy stacks really exchange, and answers of
//! a DHCP server, are changed field by field, mostly with their checksums made right again so
//! that they get past the first door. The file that takes this module in has `link` and the
//! stack's public names in scope.

use super::link::*;
use super::*;

/// Frames of one run; each run starts new stacks from its own seed.
const RUN: u64 = 20_000;

/// How often each kind of frame went in, so that a run that reached nothing is seen.
#[derive(Debug, Default)]
pub struct Tally {
    pub frames: u64,
    pub dropped: u64,
    pub connections: u64,
    pub bytes: u64,
}

fn sum(mut total: u32, data: &[u8]) -> u32 {
    for pair in data.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    total
}

fn put(frame: &mut [u8], at: usize, mut total: u32) {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    frame[at..at + 2].copy_from_slice(&(!(total as u16)).to_be_bytes());
}

/// Makes the checksums of a frame right where it is long enough to have them.
pub fn mend(frame: &mut [u8]) {
    if frame.len() < 34 || frame[12..14] != [8, 0] {
        return;
    }
    let header = 14 + usize::from(frame[14] & 15) * 4;
    if header < 34 || header > frame.len() {
        return;
    }
    frame[24..26].fill(0);
    let total = sum(0, &frame[14..header]);
    put(frame, 24, total);
    let end = (14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))).min(frame.len());
    let (place, pseudo) = match frame[23] {
        1 => (2, false),
        6 => (16, true),
        17 => (6, true),
        _ => return,
    };
    if end < header + place + 2 {
        return;
    }
    frame[header + place..header + place + 2].fill(0);
    let mut total = sum(0, &frame[header..end]);
    if pseudo {
        total = sum(total, &frame[26..34]) + u32::from(frame[23]) + (end - header) as u32;
    }
    put(frame, header + place, total);
}

fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(4) {
        let at = random.below(frame.len() as u64) as usize;
        let is_tcp = frame.len() >= 54 && frame[23] == 6;
        match random.below(12) {
            // Numbers near the right ones reach further than any others.
            0 | 1 if is_tcp => {
                let field = 38 + 4 * random.below(2) as usize;
                let mut bytes = [0; 4];
                bytes.copy_from_slice(&frame[field..field + 4]);
                let by = match random.below(4) {
                    0 => 1,
                    1 => random.below(3000) as u32,
                    2 => random.below(1 << 20) as u32,
                    _ => random.next() as u32,
                };
                let number = u32::from_be_bytes(bytes);
                let near = if random.below(2) == 0 {
                    number.wrapping_add(by)
                } else {
                    number.wrapping_sub(by)
                };
                frame[field..field + 4].copy_from_slice(&near.to_be_bytes());
            }
            2 | 3 if is_tcp => frame[47] = random.next() as u8 & 0x3f,
            4 if is_tcp => frame[48..50].copy_from_slice(&(random.next() as u16).to_be_bytes()),
            5 if is_tcp => {
                // New options: their kinds, and a header length that may not fit them.
                let size = random.below(41) as usize;
                let options: Vec<u8> = (0..size)
                    .map(|_| match random.below(3) {
                        0 => [1, 2, 3, 4, 5, 8, 10, 18][random.below(8) as usize],
                        _ => random.next() as u8,
                    })
                    .collect();
                let end = (54 + size).min(frame.len());
                frame[54..end].copy_from_slice(&options[..end - 54]);
                frame[46] = ((20 + size) / 4 << 4) as u8;
            }
            6 => frame.truncate(1 + at),
            7 => {
                let more = random.below(1500) as usize;
                frame.resize((frame.len() + more).min(1514), random.next() as u8);
            }
            8 if frame.len() > 18 => {
                let length = (frame.len() - 14) as u16;
                frame[16..18].copy_from_slice(&length.to_be_bytes());
            }
            9 => frame[at] ^= 1 << random.below(8),
            10 => frame[at] = [0, 0xff, 0x7f, 0x80][random.below(4) as usize],
            _ => frame[at] = random.next() as u8,
        }
    }
    if random.below(8) > 0 {
        mend(frame);
    }
}

/// A UDP, ICMP or ARP frame, or an answer of a DHCP server, from nothing.
fn invent(random: &mut Random, quote: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1 + random.below(3) as u8, 2, 0, 0, 0, 0, 2, 8, 0];
    if random.below(8) == 0 {
        frame[13] = 6;
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1 + random.below(2) as u8, 2, 0, 0, 0, 0]);
        frame.extend([random.next() as u8, 10, 0, 0, random.next() as u8, 0, 0, 0, 0, 0, 0]);
        frame.extend([10, 0, 0, 1]);
        return frame;
    }
    let mut data = Vec::new();
    let protocol = match random.below(3) {
        0 => {
            data.extend([[0, 3, 8, 11][random.below(4) as usize], random.below(6) as u8, 0, 0]);
            data.extend((random.next() as u32).to_be_bytes());
            // What a router quotes, of frames that were really sent.
            data.extend(&quote[quote.len().min(14)..]);
            1
        }
        1 => {
            data.extend([0, 53, 0xc0, random.next() as u8, 0, 20, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
            data.extend([9, 10, 11, 12]);
            17
        }
        _ => {
            let mut message = vec![2, 1, 6, 0];
            message.extend(quote.get(46..50).unwrap_or(&[0; 4]));
            message.extend([0; 8]);
            message.extend([10, 0, 0, 3, 10, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3]);
            message.resize(236, 0);
            message.extend([99, 130, 83, 99, 53, 1, [2, 5, 6][random.below(3) as usize]]);
            message.extend([54, 4, 10, 0, 0, 2, 1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 0, 2]);
            message.extend([6, 8, 1, 1, 1, 1, 2, 2, 2, 2, 51, 4, 0, 0, random.next() as u8, 60]);
            message.extend([58, 4, 0, 0, 0, random.next() as u8, 59, 4, 0, 0, 0, 200, 255]);
            data.extend([0, 67, 0, 68]);
            data.extend((8 + message.len() as u16).to_be_bytes());
            data.extend([0, 0]);
            data.extend(message);
            17
        }
    };
    frame.extend([0x45, 0]);
    frame.extend((20 + data.len() as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 2, 10, 0, 0, frame[5]]);
    frame.extend(data);
    mend(&mut frame);
    frame
}

/// Calls on the sockets as a program may make them, in any order.
fn call(stack: &mut Stack, sockets: &mut Vec<SocketId>, random: &mut Random, now: u64, to: u8) {
    let mut buffer = [0; 8192];
    let size = random.below(buffer.len() as u64) as usize;
    if sockets.is_empty() || random.below(12) == 0 {
        let kind = if random.below(4) == 0 { Kind::Datagram } else { Kind::Stream };
        sockets.extend(stack.open(kind));
        return;
    }
    let index = random.below(sockets.len() as u64) as usize;
    let id = sockets[index];
    let peer = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, to), 80 + random.below(3) as u16);
    match random.below(16) {
        0 => {
            let _ = stack.bind(id, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, peer.port()));
        }
        1 => {
            let _ = stack.listen(id, 4);
        }
        2 => {
            let _ = stack.connect(id, peer, now);
        }
        3..=5 => sockets.extend(stack.accept(id).map(|(accepted, _)| accepted)),
        6..=8 => {
            let _ = stack.send(id, &buffer[..size]);
        }
        9 | 10 => {
            let _ = stack.recv(id, &mut buffer[..size], random.below(8) == 0);
        }
        11 => {
            let _ = stack.send_to(id, &buffer[..size.min(900)], Some(peer), now);
        }
        12 => {
            let _ = stack.set_option(id, SocketOption::KeepAlive(true));
        }
        13 if random.below(4) == 0 => {
            let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both];
            let _ = stack.shutdown(id, how[random.below(3) as usize]);
        }
        14 if random.below(8) == 0 => {
            stack.close(sockets.swap_remove(index), now);
        }
        _ => {
            let _ = (stack.readiness(id), stack.take_error(id), stack.pending(id));
            let _ = (stack.local_address(id), stack.peer_address(id), stack.is_listening(id));
        }
    }
    if sockets.len() > 40 {
        stack.close(sockets.swap_remove(0), now);
    }
}

/// Sends `frames` mutated frames, from `seed` on; panics where a stack does.
pub fn run(frames: u64, seed: u64) -> Tally {
    let mut tally = Tally::default();
    let mut number = 0;
    while tally.frames < frames {
        let mut random = Random((seed << 32 | number) * 2 + 1);
        number += 1;
        for _ in 0..8 {
            random.next();
        }
        one(&mut random, RUN.min(frames - tally.frames), &mut tally);
    }
    tally
}

fn one(random: &mut Random, frames: u64, tally: &mut Tally) {
    let mut link = Link::new(lossy(random.below(3)), random.next() | 1);
    // Clocks and numbers that turn over in the middle of a run.
    link.now = random.below(1 << 44);
    let mac = [2, 0, 0, 0, 0, 3];
    let asking = Config { mac, mtu: 1500, address: AddressSource::Dhcp, secret: [3; 32] };
    let mut asking = Stack::new(asking);
    let mut question = Vec::new();
    let mut sockets = [Vec::new(), Vec::new()];
    link.seen = Some(Vec::new());
    let (listener, accepted, client) = link.connect();
    sockets[0].extend([listener, accepted]);
    sockets[1].push(client);
    let mut pool: Vec<(usize, Vec<u8>)> = Vec::new();
    for i in 0..frames {
        let side = random.below(2) as usize;
        let now = link.now;
        call(&mut link.stacks[side], &mut sockets[side], random, now, 2 - side as u8);
        let mut moving = 1 << random.below(12);
        if random.below(2000) == 0 {
            moving = 1 << random.below(30);
        }
        // One step, not all the time: the peers should not have settled before the next frame.
        link.step(now + moving);
        for (_, sender, frame) in link.seen.as_mut().unwrap().drain(..) {
            if pool.len() < 256 {
                pool.push((1 - sender, frame));
            } else {
                pool[random.below(256) as usize] = (1 - sender, frame);
            }
        }
        let newest = pool.len() as u64 - 1;
        let pick = if random.below(2) == 0 { newest } else { random.below(newest + 1) };
        let (mut to, mut frame) = pool[pick as usize].clone();
        if random.below(16) == 0 {
            let quote = if random.below(2) == 0 { &question } else { &frame };
            frame = invent(random, quote);
            to = random.below(2) as usize;
        }
        mutate(&mut frame, random);
        link.stacks[to].receive_frame(&frame, link.now);
        if random.below(8) == 0 {
            asking.poll(link.now);
            asking.transmit(link.now, 64, &mut |frame| question = frame.to_vec());
            asking.receive_frame(&frame, link.now);
        }
        tally.frames += 1;
        if i % 64 == 0 {
            for stack in &mut link.stacks {
                while stack.take_event().is_some() {}
                let now = stack.statistics();
                assert!(now.memory <= MAX_SOCKET_MEMORY);
                assert!(now.connections <= MAX_CONNECTIONS && now.handshakes <= MAX_HANDSHAKES);
            }
        }
    }
    for (stack, sockets) in link.stacks.iter_mut().zip(sockets) {
        tally.dropped += stack.statistics().frames_dropped;
        tally.connections += stack.statistics().connections as u64;
        tally.bytes += stack.statistics().memory as u64;
        for id in sockets {
            stack.close(id, link.now);
        }
    }
    // All that was opened comes to its end by itself.
    link.faults = CLEAN;
    link.run(3_000_000_000);
    for stack in &link.stacks {
        let left = stack.statistics();
        assert_eq!((left.connections, left.sockets, left.memory), (0, 0, 0));
        assert_eq!(left.handshakes, 0);
    }
}
