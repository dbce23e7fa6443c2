//! Timers, windows and the protocols beside TCP.

use super::*;

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
