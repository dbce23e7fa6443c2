//! Blocked bloom filters over XXH64 of key prefixes (docs/format-index.md, "Filter").

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// One line holds the bits of a prefix: a probe costs one cache miss.
const LINE_BYTES: usize = 64;
/// Bits set for each prefix, 9 bits of the hash each.
const PROBES: usize = 6;

fn word(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&data[..8]);
    u64::from_le_bytes(bytes)
}

fn half(data: &[u8]) -> u64 {
    u64::from(u32::from_le_bytes([data[0], data[1], data[2], data[3]]))
}

fn round(acc: u64, input: u64) -> u64 {
    acc.wrapping_add(input.wrapping_mul(P2))
        .rotate_left(31)
        .wrapping_mul(P1)
}

/// XXH64 with seed 0 (the xxHash specification, 0.1.1).
pub fn xxh64(data: &[u8]) -> u64 {
    let mut rest = data;
    let mut hash = if data.len() >= 32 {
        let mut lanes = [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)];
        while rest.len() >= 32 {
            for (lane, chunk) in lanes.iter_mut().zip(rest.chunks_exact(8)) {
                *lane = round(*lane, word(chunk));
            }
            rest = &rest[32..];
        }
        let mut hash = lanes[0]
            .rotate_left(1)
            .wrapping_add(lanes[1].rotate_left(7))
            .wrapping_add(lanes[2].rotate_left(12))
            .wrapping_add(lanes[3].rotate_left(18));
        for lane in lanes {
            hash = (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
        }
        hash
    } else {
        P5
    };
    hash = hash.wrapping_add(data.len() as u64);
    while rest.len() >= 8 {
        hash ^= round(0, word(rest));
        hash = hash.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        rest = &rest[8..];
    }
    if rest.len() >= 4 {
        hash ^= half(rest).wrapping_mul(P1);
        hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        rest = &rest[4..];
    }
    for byte in rest {
        hash ^= u64::from(*byte).wrapping_mul(P5);
        hash = hash.rotate_left(11).wrapping_mul(P1);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(P2);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(P3);
    hash ^ (hash >> 32)
}

fn line(hash: u64, lines: usize) -> usize {
    (((hash >> 32) * lines as u64) >> 32) as usize
}

/// A filter for the given hashes (duplicates are harmless).
pub fn build(hashes: &[u64], bits_per_row: usize) -> Vec<u8> {
    let lines = (hashes.len() * bits_per_row)
        .div_ceil(LINE_BYTES * 8)
        .max(1);
    let mut filter = vec![0; lines * LINE_BYTES];
    for &hash in hashes {
        let start = line(hash, lines) * LINE_BYTES;
        let mut bits = hash.wrapping_mul(P1);
        for _ in 0..PROBES {
            let bit = (bits & 511) as usize;
            filter[start + bit / 8] |= 1 << (bit % 8);
            bits >>= 9;
        }
    }
    filter
}

/// Whether a prefix with this hash may be in it. A filter of a wrong size says yes.
#[inline]
pub fn may_hold(filter: &[u8], hash: u64) -> bool {
    let lines = filter.len() / LINE_BYTES;
    if lines == 0 {
        return true;
    }
    let start = line(hash, lines) * LINE_BYTES;
    let held = &filter[start..start + LINE_BYTES];
    let mut bits = hash.wrapping_mul(P1);
    for _ in 0..PROBES {
        let bit = (bits & 511) as usize;
        if held[bit / 8] & (1 << (bit % 8)) == 0 {
            return false;
        }
        bits >>= 9;
    }
    true
}
