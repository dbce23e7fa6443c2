//! A DHCP client (RFC 2131): discover, request, renew with the server that gave the lease, then
//! with any, and start again at the lease's end.

use crate::egress::Egress;
use crate::wire::*;
use crate::*;
use alloc::vec::Vec;

pub const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// The first pause before a question is repeated; it doubles up to the last.
const RETRY_FIRST_US: u64 = 1_000_000;
const RETRY_LAST_US: u64 = 16_000_000;
/// A shorter lease than this is treated as this long, so that renewal cannot flood the link.
const LEASE_MIN_S: u64 = 30;
/// The least pause between two questions while the lease runs (RFC 2131, 4.4.5).
const RENEW_US: u64 = 60_000_000;
const MAGIC: [u8; 4] = [99, 130, 83, 99];

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Discovering,
    Requesting,
    Bound,
}

pub struct Dhcp {
    state: State,
    transaction: u32,
    offered: Ipv4Addr,
    server: Ipv4Addr,
    pub deadline_us: u64,
    retry_us: u64,
    rebind_us: u64,
    expires_us: u64,
}

impl Dhcp {
    pub fn new(transaction: u32) -> Dhcp {
        Dhcp {
            state: State::Discovering,
            transaction,
            offered: Ipv4Addr::UNSPECIFIED,
            server: Ipv4Addr::UNSPECIFIED,
            deadline_us: 0,
            retry_us: RETRY_FIRST_US,
            rebind_us: u64::MAX,
            expires_us: u64::MAX,
        }
    }

    fn restart(&mut self, egress: &mut Egress, at_us: u64) {
        egress.lease = None;
        self.state = State::Discovering;
        self.retry_us = RETRY_FIRST_US;
        self.deadline_us = at_us;
    }

    pub fn poll(&mut self, egress: &mut Egress, now_us: u64) {
        if now_us < self.deadline_us {
            return;
        }
        if self.state == State::Bound && now_us < self.expires_us {
            let all = now_us >= self.rebind_us;
            let target = if all { Ipv4Addr::BROADCAST } else { self.server };
            self.send(egress, 3, target, now_us);
            let end = if all { self.expires_us } else { self.rebind_us };
            let pause = ((end - now_us) / 2).max(RENEW_US);
            self.deadline_us = (now_us + pause).min(end);
            return;
        }
        // The lease has run out, or the server that offered has gone.
        let gone = self.state == State::Requesting && self.retry_us >= RETRY_LAST_US;
        if self.state == State::Bound || gone {
            self.restart(egress, now_us);
        }
        if self.state == State::Discovering {
            self.transaction = self.transaction.wrapping_add(1);
        }
        let kind = if self.state == State::Discovering { 1 } else { 3 };
        self.send(egress, kind, Ipv4Addr::BROADCAST, now_us);
        // Not in step with others that were switched on together (RFC 2131, 4.1).
        let spread = u64::from(self.transaction.wrapping_mul(0x9e37_79b9) >> 12);
        self.deadline_us = now_us + self.retry_us + spread % RETRY_FIRST_US;
        self.retry_us = (self.retry_us * 2).min(RETRY_LAST_US);
    }

    fn send(&self, egress: &mut Egress, kind: u8, target: Ipv4Addr, now_us: u64) {
        let mut message = Vec::with_capacity(300);
        message.extend_from_slice(&[1, 1, 6, 0]);
        message.extend_from_slice(&self.transaction.to_be_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&egress.address().octets());
        message.extend_from_slice(&[0; 12]);
        message.extend_from_slice(&egress.mac);
        message.resize(236, 0);
        message.extend_from_slice(&MAGIC);
        message.extend_from_slice(&[53, 1, kind]);
        if kind == 3 && egress.lease.is_none() {
            message.extend_from_slice(&[50, 4]);
            message.extend_from_slice(&self.offered.octets());
            message.extend_from_slice(&[54, 4]);
            message.extend_from_slice(&self.server.octets());
        }
        message.extend_from_slice(&[55, 6, 1, 3, 6, 51, 58, 59, 255]);
        message.resize(300, 0);
        let source = SocketAddrV4::new(egress.address(), CLIENT_PORT);
        let target = SocketAddrV4::new(target, SERVER_PORT);
        egress.send_udp(source, target, &message, now_us);
    }

    pub fn receive(&mut self, egress: &mut Egress, data: &[u8], now_us: u64) {
        if data.len() < 240 || data[0] != 2 || be32(data, 4) != self.transaction {
            return;
        }
        if data[28..34] != egress.mac || data[236..240] != MAGIC {
            return;
        }
        let offered = address(data, 16);
        let (mut kind, mut prefix, mut gateway, mut server) = (0, 24, None, None);
        let (mut lease_s, mut name_servers) = (3600u64, Vec::new());
        let (mut renew_s, mut rebind_s) = (None, None);
        let mut options = &data[240..];
        while options.len() >= 2 && options[0] != 255 {
            if options[0] == 0 {
                options = &options[1..];
                continue;
            }
            let length = usize::from(options[1]);
            let Some(value) = options.get(2..2 + length) else { return };
            match (options[0], length) {
                (53, 1) => kind = value[0],
                (1, 4) => prefix = be32(value, 0).leading_ones() as u8,
                (3, 4..) => gateway = Some(address(value, 0)),
                (6, 4..) => {
                    let servers = value.chunks_exact(4).map(|v| address(v, 0));
                    name_servers = servers.take(MAX_NAME_SERVERS).collect();
                }
                (51, 4) => lease_s = u64::from(be32(value, 0)),
                (58, 4) => renew_s = Some(u64::from(be32(value, 0))),
                (59, 4) => rebind_s = Some(u64::from(be32(value, 0))),
                (54, 4) => server = Some(address(value, 0)),
                _ => {}
            }
            options = &options[2 + length..];
        }
        match (self.state, kind) {
            (State::Discovering, 2) => {
                self.offered = offered;
                self.server = server.unwrap_or(offered);
                self.state = State::Requesting;
                self.retry_us = RETRY_FIRST_US;
                self.deadline_us = now_us;
            }
            (State::Requesting | State::Bound, 5) => {
                egress.lease = Some(Lease { address: offered, prefix, gateway, name_servers });
                self.state = State::Bound;
                if let Some(server) = server {
                    self.server = server;
                }
                // The server's times, where they lie in order; else the usual shares.
                let lease_s = lease_s.max(LEASE_MIN_S);
                let rebind_s = rebind_s.unwrap_or(lease_s * 7 / 8).clamp(lease_s / 2, lease_s);
                let renew_s = renew_s.unwrap_or(lease_s / 2).clamp(LEASE_MIN_S / 2, rebind_s);
                self.expires_us = now_us + lease_s * 1_000_000;
                self.rebind_us = now_us + rebind_s * 1_000_000;
                self.deadline_us = now_us + renew_s * 1_000_000;
            }
            (State::Requesting | State::Bound, 6) => self.restart(egress, now_us + RETRY_FIRST_US),
            _ => {}
        }
    }
}
