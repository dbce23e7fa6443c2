//! Random bytes: ChaCha20 (RFC 8439's block function) with fast key erasure. Each request takes a
//! new key from the stream before anything is handed out, so that what was given cannot be
//! computed from what is kept. Reseeded each minute from the processor and virtio-rng.

use crate::mm::Global;
use crate::{arch, drivers};

const RESEED_US: u64 = 60_000_000;

struct Generator {
    key: [u32; 8],
    reseed_us: u64,
}

static GENERATOR: Global<Generator> = Global::new(Generator { key: [0; 8], reseed_us: 0 });

fn block(key: &[u32; 8], counter: u64) -> [u32; 16] {
    let mut start = [0; 16];
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    start[4..12].copy_from_slice(key);
    start[12..14].copy_from_slice(&[counter as u32, (counter >> 32) as u32]);
    let mut x = start;
    for half in 0..20 {
        // Columns, then diagonals.
        for i in 0..4 {
            let turn = |row: usize| 4 * row + (i + row * (half % 2)) % 4;
            let [a, b, c, d] = [turn(0), turn(1), turn(2), turn(3)];
            x[a] = x[a].wrapping_add(x[b]);
            x[d] = (x[d] ^ x[a]).rotate_left(16);
            x[c] = x[c].wrapping_add(x[d]);
            x[b] = (x[b] ^ x[c]).rotate_left(12);
            x[a] = x[a].wrapping_add(x[b]);
            x[d] = (x[d] ^ x[a]).rotate_left(8);
            x[c] = x[c].wrapping_add(x[d]);
            x[b] = (x[b] ^ x[c]).rotate_left(7);
        }
    }
    for (word, first) in x.iter_mut().zip(start) {
        *word = word.wrapping_add(first);
    }
    x
}

/// Mixes fresh entropy into the key. False where no source gave any.
pub fn reseed(now_us: u64) -> bool {
    let mut fresh = [0u32; 8];
    let mut any = false;
    for pair in fresh.chunks_exact_mut(2) {
        if let Some(word) = arch::hardware_random() {
            pair.copy_from_slice(&[word as u32, (word >> 32) as u32]);
            any = true;
        }
    }
    let mut bytes = [0; 32];
    if drivers::rng_read(&mut bytes) {
        any = true;
        for (word, chunk) in fresh.iter_mut().zip(bytes.chunks_exact(4)) {
            *word ^= u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
    }
    let mut generator = GENERATOR.get();
    generator.reseed_us = now_us + RESEED_US;
    // The old key goes through the cipher, so that a weak source cannot undo a good one.
    let old = block(&generator.key, now_us);
    for (i, word) in fresh.iter().enumerate() {
        generator.key[i] = old[i] ^ word;
    }
    let mixed = block(&generator.key, 0);
    generator.key.copy_from_slice(&mixed[..8]);
    any
}

pub fn fill(out: &mut [u8]) {
    let now = arch::now_us();
    if GENERATOR.get().reseed_us <= now {
        reseed(now);
    }
    let mut generator = GENERATOR.get();
    let key = generator.key;
    let first = block(&key, 0);
    generator.key.copy_from_slice(&first[..8]);
    for (i, chunk) in out.chunks_mut(64).enumerate() {
        let words = block(&key, i as u64 + 1);
        for (byte, at) in chunk.iter_mut().zip(0..) {
            *byte = words[at / 4].to_le_bytes()[at % 4];
        }
    }
}

pub fn word() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
