//! Leases (RFC 2131).

use super::*;

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
