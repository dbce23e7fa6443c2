//! Reads of spans of keys, over blocks that are in memory.
use super::block;
use super::filter;
use super::run::Run;
use super::stream::{Merge, Stream};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

fn block_of<'a>(source: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    if let Ok(bytes) = source.cast::<PyBytes>() {
        return Ok(bytes.as_bytes());
    }
    match source.cast::<Run>() {
        Ok(run) => Ok(&run.get().data.block),
        Err(_) => Err(PyTypeError::new_err("a source holds blocks and runs")),
    }
}

type DropArg = (Vec<u8>, Option<Vec<u8>>, u64);

/// Merges sources (newest first, each a list of blocks or runs in order of keys) over
/// low <= key < high. Returns the rows (at most `limit`, deleted ones left out), and the key to go
/// on from, or None at the end of the span. It stops after `budget` rows of any kind. With
/// `filtered`, `low` is a bloom prefix: runs whose filter excludes it are passed over.
#[allow(clippy::too_many_arguments)]
#[pyfunction]
#[pyo3(signature = (sources, low, high, limit, drops, budget, filtered = false))]
pub fn index_scan<'py>(
    py: Python<'py>,
    sources: &Bound<'py, PyList>,
    low: &[u8],
    high: Option<&[u8]>,
    limit: usize,
    drops: Vec<DropArg>,
    budget: usize,
    filtered: bool,
) -> PyResult<(Bound<'py, PyList>, Option<Bound<'py, PyBytes>>)> {
    let drops = super::to_drops(drops);
    let mut held = Vec::with_capacity(sources.len());
    for source in sources.iter() {
        let blocks: Vec<Bound<'py, PyAny>> = source.cast_into::<PyList>()?.iter().collect();
        held.push(blocks);
    }
    let mut streams = Vec::with_capacity(held.len());
    let hash = filter::xxh64(low);
    for blocks in &held {
        if let (true, [run]) = (filtered, blocks.as_slice()) {
            if let Ok(run) = run.cast::<Run>() {
                if !filter::may_hold(&run.get().data.filter, hash) {
                    continue;
                }
            }
        }
        let mut lent = Vec::with_capacity(blocks.len());
        for block in blocks {
            lent.push(block_of(block)?);
        }
        streams.push(Stream::complete(lent));
    }
    let mut merge = Merge::start(streams, Some(low)).map_err(super::corrupt)?;
    let rows = PyList::empty(py);
    let mut count = 0;
    let mut resume = None;
    let mut left = budget;
    while let Some(row) = merge.top() {
        if high.is_some_and(|high| row.key >= high) {
            break;
        }
        if count == limit || left == 0 {
            resume = Some(PyBytes::new(py, row.key));
            break;
        }
        left -= 1;
        if let Some(value) = row.value {
            if !drops.iter().any(|drop| drop.covers(row.key, row.sequence)) {
                let pair = [PyBytes::new(py, row.key), PyBytes::new(py, value)];
                rows.append(PyTuple::new(py, pair)?)?;
                count += 1;
            }
        }
        merge.advance().map_err(super::corrupt)?;
    }
    Ok((rows, resume))
}

/// The row of `key` in one block: its value, False if deleted, None if there is none with a
/// sequence above `floor`.
#[pyfunction]
#[pyo3(signature = (block, key, floor = 0))]
pub fn index_block_get<'py>(
    py: Python<'py>,
    block: &[u8],
    key: &[u8],
    floor: u64,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let row = block::get(block, key).map_err(super::corrupt)?;
    Ok(super::run::found(py, row, floor))
}

/// The runs (of a tuple, newest first) whose filters may hold rows with the bloom prefix `prefix`.
#[pyfunction]
pub fn index_candidates<'py>(
    py: Python<'py>,
    runs: &Bound<'py, PyTuple>,
    prefix: &[u8],
) -> PyResult<Bound<'py, PyList>> {
    let hash = filter::xxh64(prefix);
    let found = PyList::empty(py);
    for run in runs.iter() {
        if filter::may_hold(&run.cast::<Run>()?.get().data.filter, hash) {
            found.append(run)?;
        }
    }
    Ok(found)
}

/// The first row of one block or run whose key starts with `prefix`, as (key, value). None if the
/// block cannot tell: the first row from there on is deleted, has a sequence at or below `floor`,
/// or starts otherwise.
#[pyfunction]
#[pyo3(signature = (source, prefix, floor = 0))]
pub fn index_first<'py>(
    py: Python<'py>,
    source: &Bound<'py, PyAny>,
    prefix: &[u8],
    floor: u64,
) -> PyResult<Option<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>> {
    let row = block::first(block_of(source)?, prefix).map_err(super::corrupt)?;
    Ok(match row {
        Some((key, sequence, Some(value))) if sequence > floor && key.starts_with(prefix) => {
            Some((PyBytes::new(py, &key), PyBytes::new(py, value)))
        }
        _ => None,
    })
}

/// All rows of a block as (key, prefix length, sequence, value or None), checked throughout.
#[pyfunction]
pub fn index_block_rows<'py>(py: Python<'py>, block: &[u8]) -> PyResult<Bound<'py, PyList>> {
    block::check(block).map_err(super::corrupt)?;
    let mut cursor = block::Cursor::default();
    cursor.enter(block).map_err(super::corrupt)?;
    let rows = PyList::empty(py);
    while cursor.step(block).map_err(super::corrupt)? {
        let value = cursor.value(block).map(|value| PyBytes::new(py, value));
        let key = PyBytes::new(py, &cursor.key);
        rows.append((key, cursor.prefix, cursor.sequence, value))?;
    }
    Ok(rows)
}
