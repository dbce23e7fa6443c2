//! Merges of runs and tables into new tables, in steps of bounded work.
use super::run::{Run, RunData};
use super::seal;
use super::stream::{Drop, Merge, Stream};
use super::table::{Properties, TableBuilder};
use crate::aead::ChaChaKey;
use crate::buffers::ReadBuf;
use crate::jobs::{Job, Lane, PureJob};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use ring::aead::LessSafeKey;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Output of one step, after which it stops.
const STEP_OUT_BYTES: usize = 1 << 20;
/// Rows of one step, after which it stops even if all of them were dropped.
const STEP_ROWS: usize = 64 * 1024;

/// A block of a stream: its own, or a run that the memtable holds too.
enum Data {
    Own(Vec<u8>),
    Run(Arc<RunData>),
}

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Own(block) => block,
            Self::Run(run) => &run.block,
        }
    }
}

struct State {
    merge: Merge<Data>,
    drop_deleted: bool,
    drops: Vec<Drop>,
    block_bytes: usize,
    table_bytes: u64,
    filter_bits: usize,
    /// Key and file header of the next table.
    next: Option<(Arc<LessSafeKey>, Vec<u8>)>,
    builder: Option<TableBuilder>,
    failed: bool,
}

/// Consecutive records of a table, for one source.
struct Feed {
    source: usize,
    key: Option<Arc<LessSafeKey>>,
    offset: u64,
    data: Option<ReadBuf>,
    /// The last of the source.
    finished: bool,
}

#[derive(Default)]
struct Step {
    out: Vec<u8>,
    needs: Vec<usize>,
    table: Option<Properties>,
    done: bool,
    bad: Option<(usize, u64, &'static str)>,
}

impl State {
    /// Opens the records of a feed. The error is the offset of the bad one.
    fn feed(&mut self, feed: &Feed) -> Result<(), (u64, &'static str)> {
        let stream = &mut self.merge.streams[feed.source];
        let data = feed.data.as_ref().map_or(&[][..], ReadBuf::as_slice);
        let mut at = 0;
        while let (true, Some(key)) = (at < data.len(), &feed.key) {
            let offset = feed.offset + at as u64;
            let size = seal::record_size(&data[at..])
                .filter(|size| at + size <= data.len())
                .ok_or((offset, "a record's header is damaged"))?;
            let record = &data[at..at + size];
            let plain = seal::open(key, seal::KIND_ROWS, offset, record)
                .map_err(|reason| (offset, reason))?;
            super::block::check(&plain).map_err(|_| (offset, "a block's rows are damaged"))?;
            stream.push(Data::Own(plain));
            at += size;
        }
        stream.finished = feed.finished;
        self.merge
            .wake(feed.source, None)
            .map_err(|_| (feed.offset, "a block's rows are damaged"))
    }

    fn step(&mut self, feeds: &[Feed], step: &mut Step) {
        for feed in feeds {
            if let Err((offset, reason)) = self.feed(feed) {
                step.bad = Some((feed.source, offset, reason));
                self.failed = true;
                return;
            }
        }
        if self.merge.skip_old().is_err() {
            self.fail(step);
            return;
        }
        let mut rows = 0;
        loop {
            step.needs
                .extend((0..self.merge.streams.len()).filter(|&n| self.merge.streams[n].is_dry()));
            if !step.needs.is_empty() || step.out.len() >= STEP_OUT_BYTES || rows >= STEP_ROWS {
                return;
            }
            let Some(row) = self.merge.top() else {
                break;
            };
            rows += 1;
            let gone = (self.drop_deleted && row.value.is_none())
                || self
                    .drops
                    .iter()
                    .any(|drop| drop.covers(row.key, row.sequence));
            if !gone {
                if self.builder.is_none() {
                    let Some((key, header)) = self.next.take() else {
                        return; // the caller gives the next table first
                    };
                    self.builder = Some(TableBuilder::new(
                        key,
                        &header,
                        self.block_bytes,
                        self.filter_bits,
                        &mut step.out,
                    ));
                }
                if let Some(builder) = &mut self.builder {
                    builder.add(row.key, row.prefix, row.sequence, row.value, &mut step.out);
                }
            }
            if self.merge.advance().is_err() {
                self.fail(step);
                return;
            }
            let full = self
                .builder
                .as_ref()
                .is_some_and(|b| b.size() >= self.table_bytes);
            if full && self.merge.top().is_some() {
                step.table = self.builder.take().map(|b| b.finish(&mut step.out));
                return;
            }
        }
        step.table = self.builder.take().map(|b| b.finish(&mut step.out));
        step.done = true;
    }

    fn fail(&mut self, step: &mut Step) {
        // Blocks from disk were checked whole; only a run in memory can get here.
        self.failed = true;
        step.bad = Some((usize::MAX, 0, "rows in memory are damaged"));
    }
}

/// A merge under way. Sources are numbered newest first.
#[pyclass(frozen, module = "o3storage._native")]
pub struct TableMerger {
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct StepJob {
    state: Arc<Mutex<State>>,
    feeds: Vec<Feed>,
    step: Step,
}

impl PureJob for StepJob {
    fn work(&mut self) {
        let mut state = lock(&self.state);
        if !state.failed {
            state.step(&self.feeds, &mut self.step);
        }
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let Self { step, state, .. } = *self;
        if step.bad.is_none() && lock(&state).failed {
            return Err(PyRuntimeError::new_err("this merge has failed before"));
        }
        let result = PyDict::new(py);
        result.set_item("out", PyBytes::new(py, &step.out))?;
        result.set_item("needs", step.needs)?;
        let table = step.table.map(|table| {
            (
                table.rows,
                table.deleted,
                table.min_sequence,
                table.max_sequence,
                PyBytes::new(py, &table.first).unbind(),
                PyBytes::new(py, &table.last).unbind(),
                table.size,
            )
        });
        result.set_item("table", table)?;
        result.set_item("done", step.done)?;
        let bad = step
            .bad
            .map(|(source, offset, reason)| (i64::try_from(source).unwrap_or(-1), offset, reason));
        result.set_item("bad", bad)?;
        Ok(result.into_any().unbind())
    }
}

/// (source, key, file offset, records, finished)
type FeedArg<'py> = (
    usize,
    Option<PyRef<'py, ChaChaKey>>,
    u64,
    Option<ReadBuf>,
    bool,
);

#[pymethods]
impl TableMerger {
    #[new]
    #[pyo3(signature = (sources, *, drop_deleted, drops, block_bytes, table_bytes, filter_bits))]
    fn new(
        sources: usize,
        drop_deleted: bool,
        drops: Vec<(Vec<u8>, Option<Vec<u8>>, u64)>,
        block_bytes: usize,
        table_bytes: u64,
        filter_bits: usize,
    ) -> PyResult<Self> {
        // Row blocks start below `table_bytes`, and offsets in the block index are 32 bits.
        if sources == 0 || table_bytes > 1 << 31 || block_bytes > 1 << 24 || filter_bits > 64 {
            return Err(PyValueError::new_err("sizes of a merge are out of range"));
        }
        let streams = (0..sources).map(|_| Stream::open()).collect();
        Ok(Self {
            state: Arc::new(Mutex::new(State {
                merge: Merge::new(streams),
                drop_deleted,
                drops: super::to_drops(drops),
                block_bytes,
                table_bytes,
                filter_bits,
                next: None,
                builder: None,
                failed: false,
            })),
        })
    }

    /// Gives source `number` a run as all it holds.
    fn add_run(&self, number: usize, run: &Run) -> PyResult<()> {
        let mut state = lock(&self.state);
        let Some(stream) = state.merge.streams.get_mut(number) else {
            return Err(PyValueError::new_err("no such source"));
        };
        stream.push(Data::Run(Arc::clone(&run.data)));
        stream.finished = true;
        state.merge.wake(number, None).map_err(super::corrupt)
    }

    /// Whether a step may need a next table.
    #[getter]
    fn needs_table(&self) -> bool {
        let state = lock(&self.state);
        state.builder.is_none() && state.next.is_none()
    }

    /// The key and the file header of the next table.
    fn next_table(&self, key: &ChaChaKey, header: Vec<u8>) {
        lock(&self.state).next = Some((key.shared_key(), header));
    }

    /// A job that takes feeds in and merges on until it needs something.
    #[pyo3(signature = (feeds, *, background = true))]
    fn step(&self, feeds: Vec<FeedArg<'_>>, background: bool) -> PyResult<Job> {
        let sources = lock(&self.state).merge.streams.len();
        let mut lent = Vec::with_capacity(feeds.len());
        for (source, key, offset, data, finished) in feeds {
            if data.is_some() && key.is_none() {
                return Err(PyValueError::new_err("records are fed with their key"));
            }
            if source >= sources {
                return Err(PyValueError::new_err("no such source"));
            }
            lent.push(Feed {
                source,
                key: key.map(|key| key.shared_key()),
                offset,
                data,
                finished,
            });
        }
        let lane = if background {
            Lane::Background
        } else {
            Lane::Pure
        };
        Ok(Job::on_lane(
            StepJob {
                state: Arc::clone(&self.state),
                feeds: lent,
                step: Step::default(),
            },
            lane,
        ))
    }
}
