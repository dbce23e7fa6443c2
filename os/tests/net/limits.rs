//! Floods, and what is bounded.

use super::*;

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
