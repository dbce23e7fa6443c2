//! The stack as a program on the host: frames are datagrams of a unix socket, as QEMU's
//! `-netdev dgram` sends them. `node OWN_PATH OTHER_PATH BYTES`: takes BYTES on port 80 of
//! 10.0.0.1 from one client, checks them, sends as many back, and ends with the connection.

use net::*;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let total: usize = arguments[3].parse().expect("a number of bytes");
    let socket = UnixDatagram::bind(&arguments[1]).expect("a free path");
    let address = Ipv4Addr::new(10, 0, 0, 1);
    let lease = Lease { address, prefix: 24, gateway: None, name_servers: vec![] };
    let address = AddressSource::Static(lease);
    let mut stack =
        Stack::new(Config { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, address, secret: [7; 32] });
    let listener = stack.open(Kind::Stream).unwrap();
    stack.bind(listener, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80)).unwrap();
    stack.listen(listener, 4).unwrap();
    let begin = Instant::now();
    let pattern: Vec<u8> = (0..1 << 17).map(|i| i as u8).collect();
    // Read by a thread of its own: who waits to send must go on to take, or two that wait for
    // each other lose frames.
    let (incoming, frames) = channel();
    let reader = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut frame = vec![0; 65536];
        while let Ok(size) = reader.recv(&mut frame) {
            if incoming.send(frame[..size].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut buffer = vec![0; 1 << 16];
    let (mut connection, mut received, mut sent) = (None, 0, 0);
    loop {
        let now = begin.elapsed().as_micros() as u64;
        if stack.next_deadline().is_some_and(|at| at <= now) {
            stack.poll(now);
        }
        stack.transmit(now, 64, &mut |frame| {
            while socket.send_to(frame, &arguments[2]).is_err() {
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        if connection.is_none() {
            connection = stack.accept(listener).ok().map(|(id, _)| id);
        }
        let mut busy = false;
        if let Some(id) = connection {
            match stack.recv(id, &mut buffer, false) {
                Ok(0) if received == total && sent == total => break,
                Ok(taken) => {
                    let at = received & 0xff;
                    assert_eq!(buffer[..taken], pattern[at..at + taken]);
                    received += taken;
                    busy = true;
                }
                Err(Error::EAGAIN) => {}
                Err(error) => panic!("{error:?} after {received} and {sent} bytes"),
            }
            if received == total && sent < total {
                let size = (total - sent).min(1 << 16);
                if let Ok(taken) = stack.send(id, &pattern[sent & 0xff..][..size]) {
                    sent += taken;
                    busy = true;
                }
            }
        }
        let now = begin.elapsed().as_micros() as u64;
        let left = stack.next_deadline().map_or(10_000, |at| at.saturating_sub(now).min(10_000));
        let left = Duration::from_micros(if busy { 0 } else { left });
        let first = frames.recv_timeout(left).ok();
        for frame in first.into_iter().chain(frames.try_iter().take(63)) {
            stack.receive_frame(&frame, begin.elapsed().as_micros() as u64);
        }
    }
    println!("{:?}", stack.statistics());
}
