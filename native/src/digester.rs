//! Several digests of one byte string in one pass.
use crate::buffers::{detached, ReadBuf};
use crate::hashes::{CRC32, CRC32C, CRC64NVME};
use crate::jobs::{Job, PureJob};
use md5::Digest as _;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::sync::{Arc, Mutex, MutexGuard};

/// The data goes through all algorithms piece by piece, so that each piece is read from memory once
/// and from the first-level cache afterwards.
const PIECE_BYTES: usize = 16 * 1024;

#[derive(Clone)]
pub struct State {
    md5: Option<md5::Md5>,
    sha1: Option<sha1::Sha1>,
    sha256: Option<ring::digest::Context>,
    crc32: Option<crc_fast::Digest>,
    crc32c: Option<crc_fast::Digest>,
    crc64nvme: Option<crc_fast::Digest>,
    blake3: Option<Box<blake3::Hasher>>,
    size_bytes: u64,
}

impl State {
    pub fn update(&mut self, data: &[u8]) {
        self.size_bytes += data.len() as u64;
        for piece in data.chunks(PIECE_BYTES) {
            if let Some(hash) = &mut self.md5 {
                hash.update(piece);
            }
            if let Some(hash) = &mut self.sha1 {
                hash.update(piece);
            }
            if let Some(hash) = &mut self.sha256 {
                hash.update(piece);
            }
            for hash in [&mut self.crc32, &mut self.crc32c, &mut self.crc64nvme]
                .into_iter()
                .flatten()
            {
                hash.update(piece);
            }
            if let Some(hash) = &mut self.blake3 {
                hash.update(piece);
            }
        }
    }
}

#[pyclass(frozen, module = "o3storage._native")]
pub struct Digester {
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    match state.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

/// A digester shared with a job.
#[derive(Clone)]
pub struct SharedState(Arc<Mutex<State>>);

impl SharedState {
    pub fn update(&self, data: &[u8]) {
        lock(&self.0).update(data);
    }
}

impl Digester {
    pub fn shared(&self) -> SharedState {
        SharedState(Arc::clone(&self.state))
    }
}

#[pymethods]
impl Digester {
    #[new]
    #[pyo3(signature = (*, md5 = true, sha256 = false, sha1 = false, crc32 = false, crc32c = false, crc64nvme = false, blake3 = true))]
    fn new(
        md5: bool,
        sha256: bool,
        sha1: bool,
        crc32: bool,
        crc32c: bool,
        crc64nvme: bool,
        blake3: bool,
    ) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                md5: md5.then(md5::Md5::new),
                sha1: sha1.then(sha1::Sha1::new),
                sha256: sha256.then(|| ring::digest::Context::new(&ring::digest::SHA256)),
                crc32: crc32.then(|| crc_fast::Digest::new(CRC32)),
                crc32c: crc32c.then(|| crc_fast::Digest::new(CRC32C)),
                crc64nvme: crc64nvme.then(|| crc_fast::Digest::new(CRC64NVME)),
                blake3: blake3.then(|| Box::new(blake3::Hasher::new())),
                size_bytes: 0,
            })),
        }
    }

    fn update(&self, py: Python<'_>, data: ReadBuf) {
        detached(py, data.len(), || lock(&self.state).update(data.as_slice()));
    }

    fn update_job(&self, data: ReadBuf) -> Job {
        Job::new(UpdateJob {
            state: self.shared(),
            data,
        })
    }

    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let state = lock(&self.state);
        let digests = PyDict::new(py);
        if let Some(hash) = &state.md5 {
            digests.set_item(
                pyo3::intern!(py, "md5"),
                PyBytes::new(py, &hash.clone().finalize()),
            )?;
        }
        if let Some(hash) = &state.sha1 {
            digests.set_item(
                pyo3::intern!(py, "sha1"),
                PyBytes::new(py, &hash.clone().finalize()),
            )?;
        }
        if let Some(hash) = &state.sha256 {
            digests.set_item(
                pyo3::intern!(py, "sha256"),
                PyBytes::new(py, hash.clone().finish().as_ref()),
            )?;
        }
        if let Some(hash) = &state.crc32 {
            let value = (hash.finalize() as u32).to_be_bytes();
            digests.set_item(pyo3::intern!(py, "crc32"), PyBytes::new(py, &value))?;
        }
        if let Some(hash) = &state.crc32c {
            let value = (hash.finalize() as u32).to_be_bytes();
            digests.set_item(pyo3::intern!(py, "crc32c"), PyBytes::new(py, &value))?;
        }
        if let Some(hash) = &state.crc64nvme {
            let value = hash.finalize().to_be_bytes();
            digests.set_item(pyo3::intern!(py, "crc64nvme"), PyBytes::new(py, &value))?;
        }
        if let Some(hash) = &state.blake3 {
            digests.set_item(
                pyo3::intern!(py, "blake3"),
                PyBytes::new(py, hash.finalize().as_bytes()),
            )?;
        }
        Ok(digests)
    }

    fn copy(&self) -> Self {
        Self {
            state: Arc::new(Mutex::new(lock(&self.state).clone())),
        }
    }

    #[getter]
    fn size_bytes(&self) -> u64 {
        lock(&self.state).size_bytes
    }
}

struct UpdateJob {
    state: SharedState,
    data: ReadBuf,
}

impl PureJob for UpdateJob {
    fn work(&mut self) {
        self.state.update(self.data.as_slice());
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(py.None())
    }

    fn size_hint(&self) -> usize {
        self.data.len()
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Digester>()
}
