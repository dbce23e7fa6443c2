//! Tables: the sparse block index and filter in memory, and the builder of table files.
use super::block::{common, read_u32, BlockBuilder, Checked, Corrupt};
use super::filter;
use super::seal;
use pyo3::prelude::*;
use ring::aead::LessSafeKey;
use std::sync::Arc;

const KIND_FILTER: u8 = 2;
const KIND_BLOCK_INDEX: u8 = 3;
const KIND_PROPERTIES: u8 = 4;
const FOOTER_MAGIC: &[u8; 8] = b"O3TABEND";

/// A table's filter and sparse block index: which block may hold a key.
#[pyclass(frozen, module = "o3storage._native")]
pub struct TableIndex {
    filter: Vec<u8>,
    index: Vec<u8>,
    blocks: usize,
    prefix: Vec<u8>,
    /// Offsets in `index`: the file offsets, the key offsets, the keys.
    offsets_at: usize,
    keys_at: usize,
    blob_at: usize,
}

impl TableIndex {
    fn parse(filter: &[u8], index: &[u8]) -> Checked<Self> {
        let blocks = read_u32(index, 0)? as usize;
        let prefix_size = read_u32(index, 4)? as usize;
        let offsets_at = prefix_size.checked_add(8).ok_or(Corrupt)?;
        let prefix = index.get(8..offsets_at).ok_or(Corrupt)?.to_vec();
        let words = blocks.checked_add(1).and_then(|n| n.checked_mul(4));
        let keys_at = words.and_then(|n| n.checked_add(offsets_at));
        let keys_at = keys_at.ok_or(Corrupt)?;
        let blob_at = words.and_then(|n| n.checked_add(keys_at)).ok_or(Corrupt)?;
        let blob = index.get(blob_at..).ok_or(Corrupt)?.len();
        let this = Self {
            filter: filter.to_vec(),
            index: index.to_vec(),
            blocks,
            prefix,
            offsets_at,
            keys_at,
            blob_at,
        };
        let ascending = (0..blocks).all(|n| {
            this.word(this.offsets_at, n) < this.word(this.offsets_at, n + 1)
                && this.word(this.keys_at, n) <= this.word(this.keys_at, n + 1)
        });
        let sorted = (1..blocks).all(|n| this.low(n - 1) < this.low(n));
        if blocks == 0 || !ascending || this.word(this.keys_at, blocks) != blob || !sorted {
            return Err(Corrupt);
        }
        Ok(this)
    }

    fn word(&self, at: usize, number: usize) -> usize {
        read_u32(&self.index, at + 4 * number).unwrap_or(0) as usize
    }

    /// The lower bound of a block, without the common prefix.
    fn low(&self, number: usize) -> &[u8] {
        let start = self.blob_at + self.word(self.keys_at, number);
        let end = self.blob_at + self.word(self.keys_at, number + 1);
        self.index.get(start..end).unwrap_or(&[])
    }

    /// The last block whose lower bound is <= `key`; the first one if there is none.
    fn find(&self, key: &[u8]) -> usize {
        let head = &key[..self.prefix.len().min(key.len())];
        let rest = match head.cmp(&self.prefix) {
            std::cmp::Ordering::Less => return 0,
            std::cmp::Ordering::Greater => return self.blocks - 1,
            std::cmp::Ordering::Equal => &key[self.prefix.len()..],
        };
        let (mut low, mut high) = (0, self.blocks);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if self.low(middle) <= rest {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[pymethods]
impl TableIndex {
    #[new]
    fn new(filter: &[u8], index: &[u8]) -> PyResult<Self> {
        Self::parse(filter, index).map_err(super::corrupt)
    }

    /// Number of the block that may hold `key`, -1 if the filter excludes its first `prefix` bytes.
    fn probe(&self, key: &[u8], prefix: usize) -> i64 {
        let hash = filter::xxh64(key.get(..prefix).unwrap_or(key));
        if filter::may_hold(&self.filter, hash) {
            self.find(key) as i64
        } else {
            -1
        }
    }

    /// Number of the block in which keys >= `key` start.
    fn seek(&self, key: &[u8]) -> usize {
        self.find(key)
    }

    /// (file offset, size) of a block's record; of several that follow each other with `count`.
    #[pyo3(signature = (number, count = 1))]
    fn locate(&self, number: usize, count: usize) -> PyResult<(usize, usize)> {
        let end = number.saturating_add(count);
        if count == 0 || end > self.blocks {
            return Err(pyo3::exceptions::PyIndexError::new_err("no such block"));
        }
        let start = self.word(self.offsets_at, number);
        Ok((start, self.word(self.offsets_at, end) - start))
    }

    /// The lower bound of a block's keys.
    fn lower<'py>(
        &self,
        py: Python<'py>,
        number: usize,
    ) -> PyResult<Bound<'py, pyo3::types::PyBytes>> {
        if number >= self.blocks {
            return Err(pyo3::exceptions::PyIndexError::new_err("no such block"));
        }
        let mut key = self.prefix.clone();
        key.extend_from_slice(self.low(number));
        Ok(pyo3::types::PyBytes::new(py, &key))
    }

    /// Count of row blocks.
    #[getter]
    fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes it takes in memory.
    #[getter]
    fn size_bytes(&self) -> usize {
        self.filter.len() + self.index.len()
    }
}

/// What a finished table says about itself.
#[derive(Default, Clone)]
pub struct Properties {
    pub rows: u64,
    pub deleted: u64,
    pub min_sequence: u64,
    pub max_sequence: u64,
    pub first: Vec<u8>,
    pub last: Vec<u8>,
    pub size: u64,
}

impl Properties {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40 + self.first.len() + self.last.len());
        for number in [
            self.rows,
            self.deleted,
            self.min_sequence,
            self.max_sequence,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for key in [&self.first, &self.last] {
            out.extend_from_slice(&(key.len() as u32).to_le_bytes());
            out.extend_from_slice(key);
        }
        out
    }
}

/// Writes one table, block by block, into `out`.
pub struct TableBuilder {
    key: Arc<LessSafeKey>,
    block_bytes: usize,
    filter_bits: usize,
    /// File offset of the end of `out`.
    offset: u64,
    block: BlockBuilder,
    hashes: Vec<u64>,
    /// Lower bounds and file offsets of the blocks.
    lows: Vec<Vec<u8>>,
    offsets: Vec<u32>,
    properties: Properties,
}

impl TableBuilder {
    pub fn new(
        key: Arc<LessSafeKey>,
        header: &[u8],
        block_bytes: usize,
        filter_bits: usize,
        out: &mut Vec<u8>,
    ) -> Self {
        out.extend_from_slice(header);
        Self {
            key,
            block_bytes,
            filter_bits,
            offset: header.len() as u64,
            block: BlockBuilder::default(),
            hashes: Vec::new(),
            lows: Vec::new(),
            offsets: Vec::new(),
            properties: Properties {
                min_sequence: u64::MAX,
                ..Properties::default()
            },
        }
    }

    /// Bytes of finished blocks.
    pub fn size(&self) -> u64 {
        self.offset
    }

    fn record(&mut self, kind: u8, plain: &[u8], out: &mut Vec<u8>) {
        let before = out.len();
        // ring refuses plaintexts over 256 GiB only; a record is at most MAX_PLAIN_BYTES.
        assert!(seal::seal(&self.key, kind, self.offset, plain, out));
        self.offset += (out.len() - before) as u64;
    }

    fn close_block(&mut self, out: &mut Vec<u8>) {
        if self.block.is_empty() {
            return;
        }
        self.properties.last = self.block.last_key().to_vec();
        self.offsets.push(self.offset as u32);
        let plain = self.block.finish();
        self.record(seal::KIND_ROWS, &plain, out);
    }

    pub fn add(
        &mut self,
        key: &[u8],
        prefix: usize,
        sequence: u64,
        value: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) {
        let size = key.len() + value.map_or(0, <[u8]>::len);
        if !self.block.is_empty() && self.block.size() + size > self.block_bytes {
            self.close_block(out);
        }
        if self.block.is_empty() {
            // The shortest key that is above all of the last block and not above this one.
            let low = if self.lows.is_empty() {
                self.properties.first = key.to_vec();
                key
            } else {
                let shared = common(&self.properties.last, key);
                &key[..(shared + 1).min(key.len())]
            };
            self.lows.push(low.to_vec());
        }
        self.block.add(key, prefix, sequence, value);
        let hash = filter::xxh64(&key[..prefix.min(key.len())]);
        if self.hashes.last() != Some(&hash) {
            self.hashes.push(hash);
        }
        let properties = &mut self.properties;
        properties.rows += 1;
        properties.deleted += u64::from(value.is_none());
        properties.min_sequence = properties.min_sequence.min(sequence);
        properties.max_sequence = properties.max_sequence.max(sequence);
        if self.block.size() >= self.block_bytes {
            self.close_block(out);
        }
    }

    fn block_index(&self, end: u32) -> Vec<u8> {
        let first = self.lows.first().map_or(&[][..], Vec::as_slice);
        let last = self.lows.last().map_or(&[][..], Vec::as_slice);
        let shared = common(first, last);
        let mut out = Vec::new();
        out.extend_from_slice(&(self.lows.len() as u32).to_le_bytes());
        out.extend_from_slice(&(shared as u32).to_le_bytes());
        out.extend_from_slice(&first[..shared]);
        for offset in self.offsets.iter().chain([&end]) {
            out.extend_from_slice(&offset.to_le_bytes());
        }
        let mut at = 0u32;
        for low in &self.lows {
            out.extend_from_slice(&at.to_le_bytes());
            at += (low.len() - shared) as u32;
        }
        out.extend_from_slice(&at.to_le_bytes());
        for low in &self.lows {
            out.extend_from_slice(&low[shared..]);
        }
        out
    }

    /// Ends the table: filter, block index, properties, footer.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Properties {
        self.close_block(out);
        let filter_at = self.offset;
        let filter = filter::build(&self.hashes, self.filter_bits);
        self.record(KIND_FILTER, &filter, out);
        let index_at = self.offset;
        let index = self.block_index(filter_at as u32);
        self.record(KIND_BLOCK_INDEX, &index, out);
        let properties_at = self.offset;
        let properties = self.properties.encode();
        self.record(KIND_PROPERTIES, &properties, out);
        let mut footer = Vec::with_capacity(64);
        for offset in [filter_at, index_at, properties_at] {
            footer.extend_from_slice(&offset.to_le_bytes());
        }
        footer.extend_from_slice(FOOTER_MAGIC);
        let hash = blake3::hash(&footer);
        out.extend_from_slice(&footer);
        out.extend_from_slice(hash.as_bytes());
        self.properties.size = self.offset + 64;
        self.properties
    }
}
