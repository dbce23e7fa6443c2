//! Reading and writing the headers of Ethernet, ARP, IPv4, ICMP, UDP and TCP.

use crate::tcp::{local_of, remote_of, Key};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

pub const ETHERNET_HEADER: usize = 14;
pub const IPV4_HEADER: usize = 20;
pub const TCP_HEADER: usize = 20;
pub const UDP_HEADER: usize = 8;
pub const TYPE_IPV4: u16 = 0x0800;
pub const TYPE_ARP: u16 = 0x0806;
pub const PROTO_ICMP: u8 = 1;
pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

pub fn be16(data: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([data[at], data[at + 1]])
}

pub fn be32(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

pub fn address(data: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(data[at], data[at + 1], data[at + 2], data[at + 3])
}

/// One's-complement sum of `data` as big-endian 16-bit words, continued from `sum`.
pub fn checksum_add(sum: u64, data: &[u8]) -> u64 {
    // Native-endian 32-bit words are added eight bytes at a time and swapped once at the end:
    // the sum is the same in either byte order (RFC 1071, section 2 B).
    let mut total: u64 = 0;
    let mut add = |bytes: [u8; 8]| {
        let word = u64::from_ne_bytes(bytes);
        total += (word & 0xffff_ffff) + (word >> 32);
    };
    let (words, rest) = data.split_at(data.len() & !7);
    words.chunks_exact(8).for_each(|chunk| add(chunk.try_into().unwrap_or_default()));
    let mut last = [0u8; 8];
    last[..rest.len()].copy_from_slice(rest);
    add(last);
    sum + u64::from(u16::from_be(fold(total)))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub fn checksum_finish(sum: u64) -> u16 {
    !fold(sum)
}

/// The sum over the pseudo header of TCP and UDP.
pub fn pseudo_sum(source: Ipv4Addr, target: Ipv4Addr, protocol: u8, length: usize) -> u64 {
    let sum = checksum_add(0, &source.octets());
    checksum_add(sum, &target.octets()) + u64::from(protocol) + length as u64
}

/// A checked IPv4 packet.
pub struct Packet<'a> {
    pub source: Ipv4Addr,
    pub target: Ipv4Addr,
    pub protocol: u8,
    /// The packet with its header.
    pub whole: &'a [u8],
    pub payload: &'a [u8],
}

/// Reads an IPv4 packet; `None` for a damaged one, and for a fragment, which is refused.
pub fn parse_ipv4(data: &[u8]) -> Option<Packet<'_>> {
    if data.len() < IPV4_HEADER || data[0] >> 4 != 4 {
        return None;
    }
    let header = usize::from(data[0] & 15) * 4;
    let total = usize::from(be16(data, 2));
    if header < IPV4_HEADER || total < header || total > data.len() {
        return None;
    }
    // More-fragments set, or an offset other than nought.
    if be16(data, 6) & 0x3fff != 0 || checksum_finish(checksum_add(0, &data[..header])) != 0 {
        return None;
    }
    Some(Packet {
        source: address(data, 12),
        target: address(data, 16),
        protocol: data[9],
        whole: &data[..total],
        payload: &data[header..total],
    })
}

/// Fills the IPv4 header at the start of `packet` (whose length is final).
pub fn fill_ipv4(packet: &mut [u8], source: Ipv4Addr, target: Ipv4Addr, protocol: u8, id: u16) {
    let length = packet.len() as u16;
    packet[0] = 0x45;
    packet[1] = 0;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&0x4000u16.to_be_bytes()); // Don't fragment.
    packet[8] = 64;
    packet[9] = protocol;
    packet[10..12].fill(0);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&target.octets());
    let sum = checksum_finish(checksum_add(0, &packet[..IPV4_HEADER]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The options of a segment, read or to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
    /// The sender's clock, and the last one it had from the other side.
    pub timestamps: Option<(u32, u32)>,
    /// Received ranges, first and past-the-last number; the first `sack_count` count.
    pub sacks: [(u32, u32); 4],
    pub sack_count: usize,
}

/// All the options of one segment together, as the header's length field allows.
pub const MAX_OPTIONS: usize = 40;

impl Options {
    pub fn sacks(&self) -> &[(u32, u32)] {
        &self.sacks[..self.sack_count]
    }

    /// Bytes in the header, filled up to words.
    pub fn length(&self) -> usize {
        let sacks = if self.sack_count > 0 { 4 + 8 * self.sack_count } else { 0 };
        let flags = [self.mss.is_some(), self.window_scale.is_some(), self.sack_permitted];
        let words = flags.iter().filter(|set| **set).count();
        4 * words + if self.timestamps.is_some() { 12 } else { 0 } + sacks
    }

    fn push(&self, out: &mut Vec<u8>) {
        if let Some(mss) = self.mss {
            out.extend_from_slice(&[2, 4]);
            out.extend_from_slice(&mss.to_be_bytes());
        }
        if self.sack_permitted {
            out.extend_from_slice(&[1, 1, 4, 2]);
        }
        if let Some(shift) = self.window_scale {
            out.extend_from_slice(&[1, 3, 3, shift]);
        }
        if let Some((value, echo)) = self.timestamps {
            out.extend_from_slice(&[1, 1, 8, 10]);
            out.extend_from_slice(&value.to_be_bytes());
            out.extend_from_slice(&echo.to_be_bytes());
        }
        if self.sack_count > 0 {
            out.extend_from_slice(&[1, 1, 5, (2 + 8 * self.sack_count) as u8]);
            for (start, end) in self.sacks() {
                out.extend_from_slice(&start.to_be_bytes());
                out.extend_from_slice(&end.to_be_bytes());
            }
        }
    }

    fn parse(mut left: &[u8]) -> Option<Options> {
        let mut options = Options::default();
        while let Some(&kind) = left.first() {
            if kind == 0 {
                break;
            }
            if kind == 1 {
                left = &left[1..];
                continue;
            }
            let length = usize::from(*left.get(1)?);
            if length < 2 || length > left.len() {
                return None;
            }
            match (kind, length) {
                (2, 4) => options.mss = Some(be16(left, 2)),
                // A larger shift than 14 is taken as 14 (RFC 7323, 2.3).
                (3, 3) => options.window_scale = Some(left[2].min(14)),
                (4, 2) => options.sack_permitted = true,
                (8, 10) => options.timestamps = Some((be32(left, 2), be32(left, 6))),
                (5, 10 | 18 | 26 | 34) => {
                    options.sack_count = (length - 2) / 8;
                    for (i, block) in left[2..length].chunks_exact(8).enumerate() {
                        options.sacks[i] = (be32(block, 0), be32(block, 4));
                    }
                }
                _ => {}
            }
            left = &left[length..];
        }
        Some(options)
    }
}

/// A TCP segment: one that was checked, or the head of one to be sent.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    pub source_port: u16,
    pub target_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Options,
    pub data: &'a [u8],
}

impl Segment<'static> {
    /// The head of a segment between the ends that `key` names.
    pub fn new(key: Key, seq: u32, ack: u32, flags: u8, window: u16, options: Options) -> Self {
        let (source_port, target_port) = (local_of(key).port(), remote_of(key).port());
        Segment { source_port, target_port, seq, ack, flags, window, options, data: &[] }
    }
}

impl Segment<'_> {
    /// How many sequence numbers the segment takes.
    pub fn length(&self) -> u32 {
        let control = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        self.data.len() as u32 + control
    }

    /// Appends the header and its options; the checksum is filled by [`fill_checksum`].
    pub fn push(&self, out: &mut Vec<u8>) {
        let words = (TCP_HEADER + self.options.length()) / 4;
        out.extend_from_slice(&self.source_port.to_be_bytes());
        out.extend_from_slice(&self.target_port.to_be_bytes());
        out.extend_from_slice(&self.seq.to_be_bytes());
        out.extend_from_slice(&self.ack.to_be_bytes());
        out.extend_from_slice(&[(words << 4) as u8, self.flags]);
        out.extend_from_slice(&self.window.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        self.options.push(out);
    }
}

pub fn parse_tcp<'a>(packet: &Packet<'a>) -> Option<Segment<'a>> {
    let data = packet.payload;
    if data.len() < TCP_HEADER {
        return None;
    }
    let header = usize::from(data[12] >> 4) * 4;
    if header < TCP_HEADER || header > data.len() {
        return None;
    }
    let sum = pseudo_sum(packet.source, packet.target, PROTO_TCP, data.len());
    if checksum_finish(checksum_add(sum, data)) != 0 {
        return None;
    }
    Some(Segment {
        source_port: be16(data, 0),
        target_port: be16(data, 2),
        seq: be32(data, 4),
        ack: be32(data, 8),
        flags: data[13],
        window: be16(data, 14),
        options: Options::parse(&data[TCP_HEADER..header])?,
        data: &data[header..],
    })
}

/// Writes the TCP, UDP or ICMP checksum at `at` over `payload`.
pub fn fill_checksum(payload: &mut [u8], at: usize, pseudo: u64) {
    // All ones stand for nought, which in UDP would mean "no checksum": the sums are equal.
    let sum = match checksum_finish(checksum_add(pseudo, payload)) {
        0 => u16::MAX,
        sum => sum,
    };
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
