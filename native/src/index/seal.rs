//! Sealed records of table files: header | ciphertext and tag | BLAKE3 (docs/format-index.md,
//! "Records"). The header is associated data, the nonce is the record's file offset.
use super::block::read_u32;
use ring::aead::{Aad, LessSafeKey, Nonce};

pub const HEADER_BYTES: usize = 8;
pub const TAG_BYTES: usize = 16;
pub const HASH_BYTES: usize = 32;
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES + HASH_BYTES;
/// Largest plain size: a row of 2 MiB and its key, or the filter of a very large table.
pub const MAX_PLAIN_BYTES: usize = 64 << 20;
const VERSION: u8 = 1;

pub const KIND_ROWS: u8 = 1;

fn nonce(offset: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Appends the sealed record of `plain` to `out`. False only for sizes ring refuses.
#[must_use]
pub fn seal(key: &LessSafeKey, kind: u8, offset: u64, plain: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    out.reserve(plain.len() + OVERHEAD_BYTES);
    out.extend_from_slice(&[kind, VERSION, 0, 0]);
    out.extend_from_slice(&(plain.len() as u32).to_le_bytes());
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&out[start..]);
    out.extend_from_slice(plain);
    let body = start + HEADER_BYTES;
    let Ok(tag) =
        key.seal_in_place_separate_tag(nonce(offset), Aad::from(header), &mut out[body..])
    else {
        return false;
    };
    out.extend_from_slice(tag.as_ref());
    let hash = blake3::hash(&out[start..]);
    out.extend_from_slice(hash.as_bytes());
    true
}

/// Size of the record that starts `data`, as its header says; None if that cannot be.
pub fn record_size(data: &[u8]) -> Option<usize> {
    if data.len() < HEADER_BYTES || data[1] != VERSION || data[2] != 0 || data[3] != 0 {
        return None;
    }
    let plain = read_u32(data, 4).ok()? as usize;
    (plain <= MAX_PLAIN_BYTES).then_some(plain + OVERHEAD_BYTES)
}

/// Opens the record that is exactly `record`. The error says what did not hold. The tag covers the
/// same bytes as the hash and costs a third; whoever wants the hash checked too calls `check`.
pub fn open(
    key: &LessSafeKey,
    kind: u8,
    offset: u64,
    record: &[u8],
) -> Result<Vec<u8>, &'static str> {
    if record_size(record) != Some(record.len()) {
        return Err("a record's header is damaged");
    }
    if record[0] != kind {
        return Err("a record of another kind was found");
    }
    let (header, body) = record[..record.len() - HASH_BYTES].split_at(HEADER_BYTES);
    let mut plain = body.to_vec();
    let size = key
        .open_in_place(nonce(offset), Aad::from(header), &mut plain)
        .map_err(|_| "a record does not match its tag: it was altered, or belongs elsewhere")?
        .len();
    plain.truncate(size);
    Ok(plain)
}

/// Checks the hash of the record that starts `data` without a key; its size.
pub fn check(data: &[u8]) -> Result<usize, &'static str> {
    let size = record_size(data).ok_or("a record's header is damaged")?;
    let record = data.get(..size).ok_or("a record is cut off")?;
    let (sealed, hash) = record.split_at(size - HASH_BYTES);
    if blake3::hash(sealed).as_bytes() != hash {
        return Err("a record does not match its checksum");
    }
    Ok(size)
}
