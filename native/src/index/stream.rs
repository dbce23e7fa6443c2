//! Merging sorted streams of blocks: the newest row of each key, in order.
use super::block::{Checked, Cursor};
use std::cmp::Ordering;
use std::collections::VecDeque;

/// Rows of a span of keys below a sequence are gone (docs/format-index.md, "Drops").
pub struct Drop {
    pub low: Vec<u8>,
    pub high: Option<Vec<u8>>,
    pub sequence: u64,
}

impl Drop {
    pub fn covers(&self, key: &[u8], sequence: u64) -> bool {
        sequence <= self.sequence
            && self.low.as_slice() <= key
            && self.high.as_deref().is_none_or(|high| key < high)
    }
}

/// One sorted source: blocks in order of keys, of which more may come.
pub struct Stream<D> {
    blocks: VecDeque<D>,
    cursor: Cursor,
    /// The cursor stands on a row of the first block.
    on_row: bool,
    /// No more blocks will come.
    pub finished: bool,
}

impl<D: AsRef<[u8]>> Stream<D> {
    pub fn open() -> Self {
        Self {
            blocks: VecDeque::new(),
            cursor: Cursor::default(),
            on_row: false,
            finished: false,
        }
    }

    pub fn complete(blocks: impl IntoIterator<Item = D>) -> Self {
        Self {
            blocks: blocks.into_iter().collect(),
            finished: true,
            ..Self::open()
        }
    }

    pub fn push(&mut self, block: D) {
        self.blocks.push_back(block);
    }

    /// Neither a row nor the end: it needs more blocks.
    pub fn is_dry(&self) -> bool {
        !self.on_row && self.blocks.is_empty() && !self.finished
    }

    /// Stands on the first row (>= `low`), if the cursor was not on a row yet.
    pub fn settle(&mut self, low: Option<&[u8]>) -> Checked<()> {
        while !self.on_row {
            let Some(block) = self.blocks.front() else {
                return Ok(());
            };
            let data = block.as_ref();
            self.on_row = match low {
                Some(low) => self.cursor.seek(data, low)?,
                None => {
                    self.cursor.enter(data)?;
                    self.cursor.step(data)?
                }
            };
            if !self.on_row {
                self.blocks.pop_front();
            }
        }
        Ok(())
    }

    /// Goes to the next row, of the next block if need be.
    fn advance(&mut self) -> Checked<()> {
        let Some(block) = self.blocks.front() else {
            return Ok(());
        };
        self.on_row = self.cursor.step(block.as_ref())?;
        if !self.on_row {
            self.blocks.pop_front();
            self.settle(None)?;
        }
        Ok(())
    }

    pub fn value(&self) -> Option<&[u8]> {
        self.blocks
            .front()
            .and_then(|block| self.cursor.value(block.as_ref()))
    }
}

/// The current row of a merge.
pub struct MergedRow<'a> {
    pub key: &'a [u8],
    pub prefix: usize,
    pub sequence: u64,
    pub value: Option<&'a [u8]>,
}

/// A merge of streams, newest first. Older rows of a key are skipped.
pub struct Merge<D> {
    pub streams: Vec<Stream<D>>,
    /// A binary heap of the streams that stand on a row.
    heap: Vec<usize>,
    /// The key that was handed out last.
    last: Vec<u8>,
    any: bool,
}

impl<D: AsRef<[u8]>> Merge<D> {
    pub fn new(streams: Vec<Stream<D>>) -> Self {
        Self {
            heap: Vec::with_capacity(streams.len()),
            streams,
            last: Vec::new(),
            any: false,
        }
    }

    pub fn start(streams: Vec<Stream<D>>, low: Option<&[u8]>) -> Checked<Self> {
        let mut merge = Self::new(streams);
        for number in 0..merge.streams.len() {
            merge.wake(number, low)?;
        }
        Ok(merge)
    }

    /// Takes a stream that got blocks into the merge.
    pub fn wake(&mut self, number: usize, low: Option<&[u8]>) -> Checked<()> {
        let was_on_row = self.streams[number].on_row;
        self.streams[number].settle(low)?;
        if !was_on_row && self.streams[number].on_row {
            self.heap.push(number);
            let mut at = self.heap.len() - 1;
            while at > 0 {
                let parent = (at - 1) / 2;
                if !self.before(self.heap[at], self.heap[parent]) {
                    break;
                }
                self.heap.swap(at, parent);
                at = parent;
            }
        }
        Ok(())
    }

    fn before(&self, a: usize, b: usize) -> bool {
        let (x, y) = (&self.streams[a].cursor, &self.streams[b].cursor);
        match x.key.cmp(&y.key) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => match y.sequence.cmp(&x.sequence) {
                Ordering::Less => true,
                Ordering::Greater => false,
                Ordering::Equal => a < b,
            },
        }
    }

    /// The row that comes next: the newest of the smallest key.
    pub fn top(&self) -> Option<MergedRow<'_>> {
        let stream = &self.streams[*self.heap.first()?];
        Some(MergedRow {
            key: &stream.cursor.key,
            prefix: stream.cursor.prefix,
            sequence: stream.cursor.sequence,
            value: stream.value(),
        })
    }

    /// Goes past the current row and older rows of its key. A stream that runs dry on the way
    /// leaves the merge until `wake`; the rest of the skipping happens then.
    pub fn advance(&mut self) -> Checked<()> {
        if let Some(&first) = self.heap.first() {
            self.last.clone_from(&self.streams[first].cursor.key);
            self.any = true;
        }
        loop {
            self.pass()?;
            if !self.is_old() {
                return Ok(());
            }
        }
    }

    /// Whether the current row is an older one of the key handed out last.
    fn is_old(&self) -> bool {
        self.any
            && self
                .heap
                .first()
                .is_some_and(|&first| self.streams[first].cursor.key == self.last)
    }

    /// Skips what `wake` brought of the last key.
    pub fn skip_old(&mut self) -> Checked<()> {
        while self.is_old() {
            self.pass()?;
        }
        Ok(())
    }

    fn pass(&mut self) -> Checked<()> {
        let Some(&first) = self.heap.first() else {
            return Ok(());
        };
        self.streams[first].advance()?;
        if !self.streams[first].on_row {
            self.heap.swap_remove(0);
        }
        let mut at = 0;
        loop {
            let left = 2 * at + 1;
            if left >= self.heap.len() {
                return Ok(());
            }
            let right = left + 1;
            let child = if right < self.heap.len() && self.before(self.heap[right], self.heap[left])
            {
                right
            } else {
                left
            };
            if !self.before(self.heap[child], self.heap[at]) {
                return Ok(());
            }
            self.heap.swap(at, child);
            at = child;
        }
    }
}
