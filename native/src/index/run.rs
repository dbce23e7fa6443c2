//! Runs: the memtable's small sorted pieces, each one block with its filter.
use super::block::{self, BlockBuilder, Checked};
use super::filter;
use super::stream::{Merge, Stream};
use crate::jobs::{Job, PureJob};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use std::sync::Arc;

/// Runs are short-lived and all in memory: a lower rate of false positives is worth 2 bits.
const FILTER_BITS: usize = 12;

pub struct RunData {
    pub block: Vec<u8>,
    pub filter: Vec<u8>,
    pub rows: usize,
}

impl AsRef<[u8]> for RunData {
    fn as_ref(&self) -> &[u8] {
        &self.block
    }
}

/// An immutable sorted run.
#[pyclass(frozen, module = "o3storage._native")]
pub struct Run {
    pub data: Arc<RunData>,
}

#[pymethods]
impl Run {
    /// Rows in it, deletions included.
    #[getter]
    fn rows(&self) -> usize {
        self.data.rows
    }

    /// Bytes it takes in memory.
    #[getter]
    fn size_bytes(&self) -> usize {
        self.data.block.len() + self.data.filter.len()
    }

    /// The plain block (docs/format-index.md, "Rows").
    fn block(&self, py: Python<'_>) -> Py<PyAny> {
        PyBytes::new(py, &self.data.block).into_any().unbind()
    }
}

/// Builds the filter beside the block.
#[derive(Default)]
struct RunBuilder {
    block: BlockBuilder,
    hashes: Vec<u64>,
}

impl RunBuilder {
    fn add(&mut self, key: &[u8], prefix: usize, sequence: u64, value: Option<&[u8]>) {
        self.hashes.push(filter::xxh64(&key[..prefix]));
        self.block.add(key, prefix, sequence, value);
    }

    fn finish(mut self) -> RunData {
        let rows = self.block.rows();
        RunData {
            block: self.block.finish(),
            filter: filter::build(&self.hashes, FILTER_BITS),
            rows,
        }
    }
}

/// Sorts rows into a run; of equal keys the last one counts. ValueError without rows.
#[pyfunction]
pub fn index_run(
    rows: &Bound<'_, PyList>,
    prefix_lengths: Vec<usize>,
    sequence: u64,
) -> PyResult<Run> {
    if rows.is_empty() || rows.len() != prefix_lengths.len() {
        return Err(PyValueError::new_err(
            "a run takes one row or more, with a prefix length for each",
        ));
    }
    let mut held = Vec::with_capacity(rows.len());
    for row in rows.iter() {
        let row = row.cast_into::<PyTuple>()?;
        let key = row.get_item(0)?.cast_into::<PyBytes>()?;
        let value = row.get_item(1)?;
        let value = if value.is_none() {
            None
        } else {
            Some(value.cast_into::<PyBytes>()?)
        };
        held.push((key, value));
    }
    let mut sorted: Vec<(&[u8], usize, Option<&[u8]>)> = Vec::with_capacity(held.len());
    for ((key, value), prefix) in held.iter().zip(prefix_lengths) {
        let key = key.as_bytes();
        if prefix > key.len() {
            return Err(PyValueError::new_err("a prefix is not longer than its key"));
        }
        sorted.push((key, prefix, value.as_ref().map(|value| value.as_bytes())));
    }
    sorted.sort_by(|a, b| a.0.cmp(b.0));
    let mut builder = RunBuilder::default();
    for (at, row) in sorted.iter().enumerate() {
        if sorted.get(at + 1).is_some_and(|next| next.0 == row.0) {
            continue;
        }
        builder.add(row.0, row.1, sequence, row.2);
    }
    Ok(Run {
        data: Arc::new(builder.finish()),
    })
}

struct MergeRuns {
    runs: Vec<Arc<RunData>>,
    result: Option<Checked<RunData>>,
}

fn merge_runs(runs: &[Arc<RunData>]) -> Checked<RunData> {
    let streams = runs
        .iter()
        .map(|run| Stream::complete([run.block.as_slice()]))
        .collect();
    let mut merge = Merge::start(streams, None)?;
    let mut builder = RunBuilder::default();
    while let Some(row) = merge.top() {
        builder.add(row.key, row.prefix, row.sequence, row.value);
        merge.advance()?;
    }
    Ok(builder.finish())
}

impl PureJob for MergeRuns {
    fn work(&mut self) {
        self.result = Some(merge_runs(&self.runs));
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.result {
            Some(Ok(data)) => Ok(Py::new(
                py,
                Run {
                    data: Arc::new(data),
                },
            )?
            .into_any()),
            _ => Err(super::BlockError::new_err("a run in memory is damaged")),
        }
    }

    fn size_hint(&self) -> usize {
        self.runs.iter().map(|run| run.block.len()).sum()
    }
}

/// A job that merges runs, newest first: of equal keys the newest counts; deletions stay.
#[pyfunction]
pub fn index_merge_runs(runs: Vec<PyRef<'_, Run>>) -> PyResult<Job> {
    if runs.is_empty() {
        return Err(PyValueError::new_err("a merge takes one run or more"));
    }
    Ok(Job::new(MergeRuns {
        runs: runs.iter().map(|run| Arc::clone(&run.data)).collect(),
        result: None,
    }))
}

struct ReleaseRuns(Vec<Arc<RunData>>);

impl PureJob for ReleaseRuns {
    fn work(&mut self) {
        self.0.clear();
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(py.None())
    }
}

/// A job that gives the memory of runs back: unmapping tens of MiB takes milliseconds. The caller
/// drops its own references before the job starts.
#[pyfunction]
pub fn index_release(runs: &Bound<'_, PyTuple>) -> PyResult<Job> {
    let mut held = Vec::with_capacity(runs.len());
    for run in runs.iter() {
        held.push(Arc::clone(&run.cast::<Run>()?.get().data));
    }
    Ok(Job::new(ReleaseRuns(held)))
}

/// What one look-up returns: None (no row), False (deleted), or the value.
pub fn found<'py>(
    py: Python<'py>,
    found: block::Found<'_>,
    floor: u64,
) -> Option<Bound<'py, PyAny>> {
    match found {
        Some((sequence, _)) if sequence <= floor => None,
        Some((_, None)) => Some(pyo3::types::PyBool::new(py, false).to_owned().into_any()),
        Some((_, Some(value))) => Some(PyBytes::new(py, value).into_any()),
        None => None,
    }
}

/// The newest row of `key` in runs (newest first): its value, False if deleted, None if there is
/// none with a sequence above `floor`.
#[pyfunction]
#[pyo3(signature = (runs, key, prefix, floor = 0))]
pub fn index_get<'py>(
    py: Python<'py>,
    runs: &Bound<'py, PyTuple>,
    key: &[u8],
    prefix: usize,
    floor: u64,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let hash = filter::xxh64(key.get(..prefix).unwrap_or(key));
    for run in runs.iter_borrowed() {
        let run = run.cast::<Run>()?.get();
        if !filter::may_hold(&run.data.filter, hash) {
            continue;
        }
        let row = block::get(&run.data.block, key).map_err(super::corrupt)?;
        if row.is_some() {
            return Ok(found(py, row, floor));
        }
    }
    Ok(None)
}
