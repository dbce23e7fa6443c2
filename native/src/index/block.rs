//! The block format: sorted rows with shared key prefixes and restart points
//! (docs/format-index.md, "Rows"). Reading never trusts a byte: damage is `Corrupt`, not a panic.
use std::cmp::Ordering;

/// Rows between restart points, where a key stands whole.
pub const RESTART_ROWS: usize = 8;
/// Base sequence in front of the rows.
const HEAD_BYTES: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt;

pub type Checked<T> = Result<T, Corrupt>;

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[inline]
fn varint(data: &[u8], at: &mut usize) -> Checked<u64> {
    let mut value = 0u64;
    let mut shift = 0;
    loop {
        let byte = *data.get(*at).ok_or(Corrupt)?;
        *at += 1;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
        shift += 7;
        if shift > 63 {
            return Err(Corrupt);
        }
    }
}

#[inline]
fn size(data: &[u8], at: &mut usize) -> Checked<usize> {
    let value = varint(data, at)?;
    // Sizes stay far below 2^32; a larger one would overflow sums of offsets.
    if value > u64::from(u32::MAX) {
        return Err(Corrupt);
    }
    Ok(value as usize)
}

fn zigzag(delta: i64) -> u64 {
    ((delta << 1) ^ (delta >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

pub fn read_u32(data: &[u8], at: usize) -> Checked<u32> {
    let bytes = data
        .get(at..at.checked_add(4).ok_or(Corrupt)?)
        .ok_or(Corrupt)?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

pub fn read_u64(data: &[u8], at: usize) -> Checked<u64> {
    let bytes = data
        .get(at..at.checked_add(8).ok_or(Corrupt)?)
        .ok_or(Corrupt)?;
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    Ok(u64::from_le_bytes(word))
}

/// Length of the common prefix.
pub fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// Writes one block; rows come in ascending order of distinct keys.
#[derive(Default)]
pub struct BlockBuilder {
    data: Vec<u8>,
    restarts: Vec<u32>,
    last_key: Vec<u8>,
    base: u64,
    rows: usize,
}

impl BlockBuilder {
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Bytes so far, without the restart points.
    pub fn size(&self) -> usize {
        self.data.len()
    }

    pub fn add(&mut self, key: &[u8], prefix: usize, sequence: u64, value: Option<&[u8]>) {
        if self.rows == 0 {
            self.base = sequence;
            self.data.extend_from_slice(&sequence.to_le_bytes());
        }
        let shared = if self.rows % RESTART_ROWS == 0 {
            self.restarts.push(self.data.len() as u32);
            0
        } else {
            common(&self.last_key, key)
        };
        let data = &mut self.data;
        put_varint(data, shared as u64);
        put_varint(data, (key.len() - shared) as u64);
        put_varint(data, prefix as u64);
        put_varint(data, zigzag(sequence.wrapping_sub(self.base) as i64));
        put_varint(data, value.map_or(0, |value| value.len() as u64 + 1));
        data.extend_from_slice(&key[shared..]);
        if let Some(value) = value {
            data.extend_from_slice(value);
        }
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.rows += 1;
    }

    /// The finished block; the builder is empty again.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut data = std::mem::take(&mut self.data);
        for restart in &self.restarts {
            data.extend_from_slice(&restart.to_le_bytes());
        }
        data.extend_from_slice(&(self.restarts.len() as u32).to_le_bytes());
        self.restarts.clear();
        self.last_key.clear();
        self.rows = 0;
        data
    }
}

/// One decoded row head: where its parts are.
struct RawRow {
    shared: usize,
    key_at: usize,
    key_size: usize,
    prefix: usize,
    delta: i64,
    value_at: usize,
    value_size: Option<usize>,
    next: usize,
}

#[inline]
fn raw_row(data: &[u8], at: usize, end: usize) -> Checked<RawRow> {
    let mut at = at;
    let data = data.get(..end).ok_or(Corrupt)?;
    let shared = size(data, &mut at)?;
    let key_size = size(data, &mut at)?;
    let prefix = size(data, &mut at)?;
    let delta = unzigzag(varint(data, &mut at)?);
    let value = size(data, &mut at)?;
    let value_size = value.checked_sub(1);
    let value_at = at + key_size;
    let next = value_at + value_size.unwrap_or(0);
    if next > end {
        return Err(Corrupt);
    }
    Ok(RawRow {
        shared,
        key_at: at,
        key_size,
        prefix,
        delta,
        value_at,
        value_size,
        next,
    })
}

/// Where the parts of a block are.
#[derive(Clone, Copy)]
struct Layout {
    base: u64,
    rows_end: usize,
    restarts: usize,
}

#[inline]
fn layout(data: &[u8]) -> Checked<Layout> {
    let tail = data.len().checked_sub(4).ok_or(Corrupt)?;
    let restarts = read_u32(data, tail)? as usize;
    let table = restarts.checked_mul(4).ok_or(Corrupt)?;
    let rows_end = tail.checked_sub(table).ok_or(Corrupt)?;
    if restarts == 0 || rows_end < HEAD_BYTES {
        return Err(Corrupt);
    }
    Ok(Layout {
        base: read_u64(data, 0)?,
        rows_end,
        restarts,
    })
}

impl Layout {
    #[inline]
    fn restart(&self, data: &[u8], number: usize) -> Checked<usize> {
        let at = read_u32(data, self.rows_end + 4 * number)? as usize;
        if at < HEAD_BYTES || at >= self.rows_end {
            return Err(Corrupt);
        }
        Ok(at)
    }

    /// Offset of the last restart whose key is <= `key`, or of the first one.
    #[inline]
    fn find(&self, data: &[u8], key: &[u8]) -> Checked<usize> {
        let (mut low, mut high) = (0, self.restarts);
        while high - low > 1 {
            let middle = (low + high) / 2;
            let row = raw_row(data, self.restart(data, middle)?, self.rows_end)?;
            if row.shared != 0 {
                return Err(Corrupt);
            }
            if &data[row.key_at..row.key_at + row.key_size] <= key {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.restart(data, low)
    }
}

/// What `get` found: `Some(None)` is a deletion.
pub type Found<'a> = Option<(u64, Option<&'a [u8]>)>;

/// The row of `key` in one block, without making its neighbours' keys: `matched` is how much of
/// `key` the previous (smaller) row's key shares with it.
pub fn get<'a>(data: &'a [u8], key: &[u8]) -> Checked<Found<'a>> {
    let layout = layout(data)?;
    let mut at = layout.find(data, key)?;
    let mut matched = 0;
    let mut previous = 0;
    while at < layout.rows_end {
        let row = raw_row(data, at, layout.rows_end)?;
        if row.shared > previous {
            return Err(Corrupt);
        }
        previous = row.shared + row.key_size;
        at = row.next;
        if row.shared > matched {
            continue; // it differs from `key` where its predecessor did, and that was smaller
        }
        if row.shared < matched {
            return Ok(None); // it is larger where its predecessor still agreed
        }
        let tail = &data[row.key_at..row.key_at + row.key_size];
        let rest = &key[matched..];
        let more = common(tail, rest);
        if more == tail.len() && more == rest.len() {
            let value = row
                .value_size
                .map(|size| &data[row.value_at..row.value_at + size]);
            return Ok(Some((layout.base.wrapping_add(row.delta as u64), value)));
        }
        if more == rest.len() || (more < tail.len() && tail[more] > rest[more]) {
            return Ok(None);
        }
        matched += more;
    }
    Ok(None)
}

/// A position in a block. It holds no reference, so that blocks may change under a stream.
#[derive(Default)]
pub struct Cursor {
    pub key: Vec<u8>,
    pub prefix: usize,
    pub sequence: u64,
    value_at: usize,
    value_size: Option<usize>,
    next: usize,
    end: usize,
    base: u64,
}

impl Cursor {
    /// Goes before the first row of a block.
    pub fn enter(&mut self, data: &[u8]) -> Checked<()> {
        let layout = layout(data)?;
        self.base = layout.base;
        self.end = layout.rows_end;
        self.next = HEAD_BYTES;
        self.key.clear();
        Ok(())
    }

    /// Goes to the first row with a key >= `key`; false if there is none.
    pub fn seek(&mut self, data: &[u8], key: &[u8]) -> Checked<bool> {
        self.enter(data)?;
        self.next = layout(data)?.find(data, key)?;
        while self.step(data)? {
            if self.key.as_slice().cmp(key) != Ordering::Less {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Goes to the next row; false at the end.
    #[inline]
    pub fn step(&mut self, data: &[u8]) -> Checked<bool> {
        if self.next >= self.end {
            return Ok(false);
        }
        let row = raw_row(data, self.next, self.end)?;
        if row.shared > self.key.len() {
            return Err(Corrupt);
        }
        self.key.truncate(row.shared);
        self.key
            .extend_from_slice(&data[row.key_at..row.key_at + row.key_size]);
        if row.prefix > self.key.len() {
            return Err(Corrupt);
        }
        self.prefix = row.prefix;
        self.sequence = self.base.wrapping_add(row.delta as u64);
        self.value_at = row.value_at;
        self.value_size = row.value_size;
        self.next = row.next;
        Ok(true)
    }

    /// The value of the current row; None if it is a deletion.
    #[inline]
    pub fn value<'a>(&self, data: &'a [u8]) -> Option<&'a [u8]> {
        self.value_size
            .map(|size| &data[self.value_at..self.value_at + size])
    }
}

/// The first row whose key is >= `low`: its key, sequence and value.
pub fn first<'a>(data: &'a [u8], low: &[u8]) -> Checked<Option<FirstRow<'a>>> {
    let mut cursor = Cursor::default();
    if !cursor.seek(data, low)? {
        return Ok(None);
    }
    let value = cursor.value(data);
    Ok(Some((cursor.key, cursor.sequence, value)))
}

pub type FirstRow<'a> = (Vec<u8>, u64, Option<&'a [u8]>);

/// Checks every row and the order of keys; returns the count of rows.
pub fn check(data: &[u8]) -> Checked<usize> {
    let layout = layout(data)?;
    let mut cursor = Cursor::default();
    cursor.enter(data)?;
    let mut last: Vec<u8> = Vec::new();
    let mut rows = 0;
    loop {
        let at = cursor.next;
        if !cursor.step(data)? {
            break;
        }
        if rows > 0 && cursor.key <= last {
            return Err(Corrupt);
        }
        if rows % RESTART_ROWS == 0 && layout.restart(data, rows / RESTART_ROWS)? != at {
            return Err(Corrupt);
        }
        last.clone_from(&cursor.key);
        rows += 1;
    }
    if rows == 0 || rows.div_ceil(RESTART_ROWS) != layout.restarts {
        return Err(Corrupt);
    }
    Ok(rows)
}
