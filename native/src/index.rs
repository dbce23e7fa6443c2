//! The index's hot inner parts, as pure functions and jobs over lent buffers: runs, blocks,
//! filters, tables, merges. The format is docs/format-index.md; the policy is Python's.
use crate::aead::ChaChaKey;
use crate::buffers::{detached, NewBytes, ReadBuf};
use crate::jobs::{Job, Lane, PureJob};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use ring::aead::LessSafeKey;
use std::sync::Arc;

mod block;
mod filter;
mod merger;
mod run;
mod scan;
mod seal;
mod stream;
mod table;

pyo3::create_exception!(
    _native,
    BlockError,
    PyValueError,
    "A record or block of the index is damaged, or belongs elsewhere."
);

fn corrupt(_: block::Corrupt) -> PyErr {
    BlockError::new_err("a block's rows are damaged")
}

fn to_drops(drops: Vec<(Vec<u8>, Option<Vec<u8>>, u64)>) -> Vec<stream::Drop> {
    drops
        .into_iter()
        .map(|(low, high, sequence)| stream::Drop {
            low,
            high,
            sequence,
        })
        .collect()
}

/// XXH64 with seed 0, the hash of the filters.
#[pyfunction]
fn xxh64(data: ReadBuf) -> u64 {
    filter::xxh64(data.as_slice())
}

/// The sealed record of `plain` for file offset `offset` (docs/format-index.md, "Records").
#[pyfunction]
fn index_seal<'py>(
    py: Python<'py>,
    key: &ChaChaKey,
    kind: u8,
    offset: u64,
    plain: ReadBuf,
) -> PyResult<Bound<'py, PyBytes>> {
    if plain.len() > seal::MAX_PLAIN_BYTES {
        return Err(PyValueError::new_err("a record is too large"));
    }
    let key = key.shared_key();
    let mut out = Vec::new();
    if !seal::seal(&key, kind, offset, plain.as_slice(), &mut out) {
        return Err(PyValueError::new_err("a record is too large"));
    }
    Ok(PyBytes::new(py, &out))
}

/// The plain content of the record that is exactly `record`; hash and tag are checked. Raises
/// BlockError.
#[pyfunction]
fn index_open(
    py: Python<'_>,
    key: &ChaChaKey,
    kind: u8,
    offset: u64,
    record: ReadBuf,
) -> PyResult<Py<PyAny>> {
    let key = key.shared_key();
    let plain = detached(py, record.len(), || {
        seal::check(record.as_slice())?;
        seal::open(&key, kind, offset, record.as_slice())
    })
    .map_err(BlockError::new_err)?;
    let mut bytes = NewBytes::new(py, plain.len())?;
    bytes.as_mut_slice().copy_from_slice(&plain);
    Ok(bytes.into_bytes(py, plain.len()))
}

/// Opens consecutive row records, checking their tags. Raises BlockError whose second argument is the
/// number of the bad one.
#[pyfunction]
fn index_open_rows<'py>(
    py: Python<'py>,
    key: &ChaChaKey,
    offset: u64,
    data: ReadBuf,
) -> PyResult<Bound<'py, PyList>> {
    let key = key.shared_key();
    let opened = detached(py, data.len(), || open_rows(&key, offset, data.as_slice()));
    match opened {
        Ok(blocks) => PyList::new(py, blocks.iter().map(|block| PyBytes::new(py, block))),
        Err((number, reason)) => Err(BlockError::new_err((reason, number))),
    }
}

fn open_rows(
    key: &LessSafeKey,
    offset: u64,
    data: &[u8],
) -> Result<Vec<Vec<u8>>, (usize, &'static str)> {
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let number = blocks.len();
        let size = seal::record_size(&data[at..])
            .filter(|size| at + size <= data.len())
            .ok_or((number, "a record's header is damaged"))?;
        let record = &data[at..at + size];
        let plain = seal::open(key, seal::KIND_ROWS, offset + at as u64, record)
            .map_err(|reason| (number, reason))?;
        blocks.push(plain);
        at += size;
    }
    Ok(blocks)
}

struct VerifyJob {
    key: Arc<LessSafeKey>,
    offset: u64,
    sizes: Vec<usize>,
    data: ReadBuf,
    bad: Vec<(usize, &'static str)>,
}

impl PureJob for VerifyJob {
    fn work(&mut self) {
        let mut at = 0;
        for (number, size) in self.sizes.iter().enumerate() {
            let offset = self.offset + at as u64;
            let record = self.data.as_slice().get(at..at + size);
            let checked = record.ok_or("a record is cut off").and_then(|record| {
                seal::check(record)?;
                let plain = seal::open(&self.key, seal::KIND_ROWS, offset, record)?;
                block::check(&plain).map_err(|_| "a block's rows are damaged")
            });
            if let Err(reason) = checked {
                self.bad.push((number, reason));
            }
            at += size;
        }
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.bad.into_pyobject(py)?.into_any().unbind())
    }
}

/// A job that checks consecutive row records of the given sizes; the result lists the bad ones as
/// (number, reason).
#[pyfunction]
fn index_verify(key: &ChaChaKey, offset: u64, sizes: Vec<usize>, data: ReadBuf) -> Job {
    Job::on_lane(
        VerifyJob {
            key: key.shared_key(),
            offset,
            sizes,
            data,
            bad: Vec::new(),
        },
        Lane::Background,
    )
}

/// Checks the hash of the record that starts `data`, without a key; its size. Raises BlockError.
#[pyfunction]
fn index_check(data: ReadBuf) -> PyResult<usize> {
    seal::check(data.as_slice()).map_err(BlockError::new_err)
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("BlockError", m.py().get_type::<BlockError>())?;
    m.add_class::<run::Run>()?;
    m.add_class::<table::TableIndex>()?;
    m.add_class::<merger::TableMerger>()?;
    m.add_function(wrap_pyfunction!(xxh64, m)?)?;
    m.add_function(wrap_pyfunction!(index_seal, m)?)?;
    m.add_function(wrap_pyfunction!(index_open, m)?)?;
    m.add_function(wrap_pyfunction!(index_open_rows, m)?)?;
    m.add_function(wrap_pyfunction!(index_verify, m)?)?;
    m.add_function(wrap_pyfunction!(index_check, m)?)?;
    m.add_function(wrap_pyfunction!(run::index_run, m)?)?;
    m.add_function(wrap_pyfunction!(run::index_merge_runs, m)?)?;
    m.add_function(wrap_pyfunction!(run::index_get, m)?)?;
    m.add_function(wrap_pyfunction!(run::index_release, m)?)?;
    m.add_function(wrap_pyfunction!(scan::index_scan, m)?)?;
    m.add_function(wrap_pyfunction!(scan::index_candidates, m)?)?;
    m.add_function(wrap_pyfunction!(scan::index_first, m)?)?;
    m.add_function(wrap_pyfunction!(scan::index_block_get, m)?)?;
    m.add_function(wrap_pyfunction!(scan::index_block_rows, m)?)
}
