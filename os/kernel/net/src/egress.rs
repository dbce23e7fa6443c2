//! The way out: IPv4 packets to a neighbour whose address is asked for by ARP (RFC 826).

use crate::tcp::{local_of, remote_of, Key};
use crate::wire::*;
use crate::*;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// A neighbour's address is asked for again after this time.
const NEIGHBOUR_AGE_US: u64 = 60_000_000;
/// Between two questions for the same neighbour.
const ARP_RETRY_US: u64 = 500_000;
/// Between two ICMP errors of ours (RFC 1812, 4.3.2.8): a hundred in a second.
const ICMP_ERROR_US: u64 = 10_000;
/// Frames whose memory is kept to be used again.
const SPARE_FRAMES: usize = 64;

struct Neighbour {
    mac: Option<[u8; 6]>,
    asked_us: u64,
    seen_us: u64,
    waiting: Vec<Vec<u8>>,
}

#[derive(Default)]
pub struct Egress {
    pub mac: [u8; 6],
    pub mtu: usize,
    pub lease: Option<Lease>,
    neighbours: BTreeMap<Ipv4Addr, Neighbour>,
    pub queue: VecDeque<Vec<u8>>,
    /// Frames to ourselves; they come back in by [`Stack::poll`](crate::Stack::poll).
    pub loopback: VecDeque<Vec<u8>>,
    next_id: u16,
    /// Bytes that all sockets' buffers hold; the stack keeps it.
    pub memory: usize,
    /// Segments sent again.
    pub resent: u64,
    spare: Vec<Vec<u8>>,
    error_at: u64,
}

impl Egress {
    pub fn new(mac: [u8; 6], mtu: usize) -> Egress {
        Egress { mac, mtu, ..Egress::default() }
    }

    /// Whether senders may go on. The other half of the queue is for answers and for what one
    /// step more brings, so that nothing is dropped inside.
    pub fn has_room(&self) -> bool {
        self.queue.len().max(self.loopback.len()) < MAX_TRANSMIT_QUEUE / 2
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.clear();
        frame.reserve_exact(ETHERNET_HEADER + self.mtu);
        frame
    }

    /// Takes back a frame that was sent.
    pub fn recycle(&mut self, frame: Vec<u8>) {
        if self.spare.len() < SPARE_FRAMES {
            self.spare.push(frame);
        }
    }

    pub fn address(&self) -> Ipv4Addr {
        self.lease.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |l| l.address)
    }

    pub fn is_local(&self, address: Ipv4Addr) -> bool {
        address.is_loopback() || (self.lease.is_some() && address == self.address())
    }

    /// The address that packets to `target` come from.
    pub fn source_for(&self, target: Ipv4Addr) -> Option<Ipv4Addr> {
        let own = self.lease.as_ref().map(|l| l.address);
        target.is_loopback().then_some(Ipv4Addr::LOCALHOST).or(own)
    }

    fn mask(prefix: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
    }

    fn broadcast(&self) -> Option<Ipv4Addr> {
        let lease = self.lease.as_ref()?;
        Some(Ipv4Addr::from(u32::from(lease.address) | !Self::mask(lease.prefix)))
    }

    pub fn is_broadcast(&self, target: Ipv4Addr) -> bool {
        target.is_broadcast() || self.broadcast() == Some(target)
    }

    pub fn is_for_us(&self, target: Ipv4Addr) -> bool {
        self.is_local(target) || self.is_broadcast(target)
    }

    fn next_hop(&self, target: Ipv4Addr) -> Option<Ipv4Addr> {
        let lease = self.lease.as_ref()?;
        let mask = Self::mask(lease.prefix);
        if u32::from(lease.address) & mask == u32::from(target) & mask {
            return Some(target);
        }
        lease.gateway
    }

    /// Sends one IP packet; `build` appends what follows the IP header, its checksum being nought.
    /// False where there is no way to `target`.
    pub fn send(
        &mut self,
        source: Ipv4Addr,
        target: Ipv4Addr,
        protocol: u8,
        now_us: u64,
        build: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let mut frame = self.frame();
        frame.resize(ETHERNET_HEADER + IPV4_HEADER, 0);
        build(&mut frame);
        let payload = &mut frame[ETHERNET_HEADER + IPV4_HEADER..];
        let pseudo = pseudo_sum(source, target, protocol, payload.len());
        match protocol {
            PROTO_TCP => fill_checksum(payload, 16, pseudo),
            PROTO_UDP => fill_checksum(payload, 6, pseudo),
            _ => fill_checksum(payload, 2, 0),
        }
        self.next_id = self.next_id.wrapping_add(1);
        fill_ipv4(&mut frame[ETHERNET_HEADER..], source, target, protocol, self.next_id);
        if self.is_local(target) {
            if self.loopback.len() < MAX_TRANSMIT_QUEUE {
                self.loopback.push_back(frame);
            }
            return true;
        }
        if self.is_broadcast(target) {
            self.enqueue(frame, [255; 6], TYPE_IPV4);
            return true;
        }
        let Some(hop) = self.next_hop(target) else { return false };
        self.remember(hop, now_us);
        let Some(entry) = self.neighbours.get_mut(&hop) else { return false };
        let age = now_us.saturating_sub(entry.seen_us);
        let stale = age > NEIGHBOUR_AGE_US;
        let ask =
            (entry.mac.is_none() || stale) && now_us.wrapping_sub(entry.asked_us) >= ARP_RETRY_US;
        if ask {
            entry.asked_us = now_us;
        }
        let known = entry.mac;
        if known.is_none() && entry.waiting.len() < MAX_NEIGHBOUR_QUEUE {
            entry.waiting.push(frame);
        } else if let Some(mac) = known {
            self.enqueue(frame, mac, TYPE_IPV4);
        }
        if ask {
            // First of the address it had, then of everybody: it may have another by now.
            let known = known.filter(|_| age < 2 * NEIGHBOUR_AGE_US);
            self.send_arp(1, known.unwrap_or([255; 6]), hop);
        }
        true
    }

    fn remember(&mut self, address: Ipv4Addr, now_us: u64) {
        if self.neighbours.contains_key(&address) {
            return;
        }
        while self.neighbours.len() >= MAX_NEIGHBOURS {
            // Those that never answered go first: a flood from addresses that are not there
            // must not push out the gateway.
            let age = |n: &Neighbour| (n.mac.is_some(), n.seen_us);
            let oldest = self.neighbours.iter().min_by_key(|(_, n)| age(n)).map(|(a, _)| *a);
            if let Some(address) = oldest {
                self.neighbours.remove(&address);
            }
        }
        let asked_us = now_us.wrapping_sub(ARP_RETRY_US);
        let entry = Neighbour { mac: None, asked_us, seen_us: now_us, waiting: Vec::new() };
        self.neighbours.insert(address, entry);
    }

    fn enqueue(&mut self, mut frame: Vec<u8>, target: [u8; 6], kind: u16) {
        if self.queue.len() >= MAX_TRANSMIT_QUEUE {
            return self.recycle(frame);
        }
        frame[..6].copy_from_slice(&target);
        frame[6..12].copy_from_slice(&self.mac);
        frame[12..14].copy_from_slice(&kind.to_be_bytes());
        self.queue.push_back(frame);
    }

    fn send_arp(&mut self, operation: u16, target_mac: [u8; 6], target: Ipv4Addr) {
        let mut frame = self.frame();
        frame.resize(ETHERNET_HEADER, 0);
        frame.extend_from_slice(&[0, 1, 8, 0, 6, 4]);
        frame.extend_from_slice(&operation.to_be_bytes());
        frame.extend_from_slice(&self.mac);
        frame.extend_from_slice(&self.address().octets());
        frame.extend_from_slice(&if operation == 1 { [0; 6] } else { target_mac });
        frame.extend_from_slice(&target.octets());
        self.enqueue(frame, target_mac, TYPE_ARP);
    }

    pub fn receive_arp(&mut self, data: &[u8], now_us: u64) {
        if data.len() < 28 || data[..6] != [0, 1, 8, 0, 6, 4] || self.lease.is_none() {
            return;
        }
        let mut mac = [0; 6];
        mac.copy_from_slice(&data[8..14]);
        let (sender, target) = (address(data, 14), address(data, 24));
        if mac[0] & 1 != 0 || sender.is_unspecified() || sender == self.address() {
            return;
        }
        let for_us = target == self.address();
        // Only those we asked for, or who ask for us, are remembered (RFC 826's merge rule).
        if for_us {
            self.remember(sender, now_us);
        }
        let mut released = Vec::new();
        if let Some(entry) = self.neighbours.get_mut(&sender) {
            entry.mac = Some(mac);
            entry.seen_us = now_us;
            released = core::mem::take(&mut entry.waiting);
        }
        for frame in released {
            self.enqueue(frame, mac, TYPE_IPV4);
        }
        if for_us && be16(data, 6) == 1 {
            self.send_arp(2, mac, sender);
        }
    }

    /// Sends one segment, whose data is `a` and then `b`.
    pub fn send_tcp(&mut self, key: Key, head: &Segment, (a, b): (&[u8], &[u8]), now_us: u64) {
        let (source, target) = (*local_of(key).ip(), *remote_of(key).ip());
        self.send(source, target, PROTO_TCP, now_us, |frame| {
            head.push(frame);
            frame.extend_from_slice(a);
            frame.extend_from_slice(b);
        });
    }

    /// Answers `packet` by an ICMP message: `kind` and `code`, then `rest`.
    pub fn send_icmp(&mut self, packet: &Packet, (kind, code): (u8, u8), rest: &[u8], now_us: u64) {
        self.send(packet.target, packet.source, PROTO_ICMP, now_us, |frame| {
            frame.extend_from_slice(&[kind, code, 0, 0]);
            frame.extend_from_slice(rest);
        });
    }

    /// Says that nobody takes `packet` (RFC 1122, 3.2.2.1), a limited number of times.
    pub fn send_unreachable(&mut self, packet: &Packet, code: u8, now_us: u64) {
        if !self.is_local(packet.target) || now_us < self.error_at {
            return;
        }
        self.error_at = now_us + ICMP_ERROR_US;
        let mut rest = [0; 4 + 60 + 8];
        let header = packet.whole.len() - packet.payload.len();
        let size = packet.whole.len().min(header + 8);
        rest[4..4 + size].copy_from_slice(&packet.whole[..size]);
        self.send_icmp(packet, (3, code), &rest[..4 + size], now_us);
    }

    /// Sends one UDP datagram.
    pub fn send_udp(
        &mut self,
        source: SocketAddrV4,
        target: SocketAddrV4,
        data: &[u8],
        now_us: u64,
    ) -> bool {
        self.send(*source.ip(), *target.ip(), PROTO_UDP, now_us, |frame| {
            let length = UDP_HEADER + data.len();
            frame.extend_from_slice(&source.port().to_be_bytes());
            frame.extend_from_slice(&target.port().to_be_bytes());
            frame.extend_from_slice(&(length as u16).to_be_bytes());
            frame.extend_from_slice(&[0, 0]);
            frame.extend_from_slice(data);
        })
    }
}
