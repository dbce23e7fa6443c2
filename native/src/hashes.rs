//! One-shot hashes, checksums, HMAC and HKDF.
use crate::buffers::{detached, ReadBuf};
use crate::jobs::{Job, PureJob};
use ::md5::Digest as _;
use crc_fast::CrcAlgorithm;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring::{digest as ring_digest, hkdf, hmac};

pub const CRC32: CrcAlgorithm = CrcAlgorithm::Crc32IsoHdlc;
pub const CRC32C: CrcAlgorithm = CrcAlgorithm::Crc32Iscsi;
pub const CRC64NVME: CrcAlgorithm = CrcAlgorithm::Crc64Nvme;

fn of<'py, const N: usize>(
    py: Python<'py>,
    data: &ReadBuf,
    hash: impl FnOnce(&[u8]) -> [u8; N] + Send,
) -> Bound<'py, PyBytes> {
    let digest = detached(py, data.len(), || hash(data.as_slice()));
    PyBytes::new(py, &digest)
}

pub fn sha256_of(data: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(ring_digest::digest(&ring_digest::SHA256, data).as_ref());
    digest
}

#[pyfunction]
#[pyo3(name = "blake3")]
fn py_blake3(py: Python<'_>, data: ReadBuf) -> Bound<'_, PyBytes> {
    of(py, &data, |data| *::blake3::hash(data).as_bytes())
}

#[pyfunction]
#[pyo3(name = "sha256")]
fn py_sha256(py: Python<'_>, data: ReadBuf) -> Bound<'_, PyBytes> {
    of(py, &data, sha256_of)
}

#[pyfunction]
#[pyo3(name = "sha1")]
fn py_sha1(py: Python<'_>, data: ReadBuf) -> Bound<'_, PyBytes> {
    of(py, &data, |data| ::sha1::Sha1::digest(data).into())
}

#[pyfunction]
#[pyo3(name = "md5")]
fn py_md5(py: Python<'_>, data: ReadBuf) -> Bound<'_, PyBytes> {
    of(py, &data, |data| ::md5::Md5::digest(data).into())
}

fn blake3_of_parts(parts: &[ReadBuf]) -> [u8; 32] {
    let mut hasher = ::blake3::Hasher::new();
    for part in parts {
        hasher.update(part.as_slice());
    }
    *hasher.finalize().as_bytes()
}

#[pyfunction]
fn blake3_parts(py: Python<'_>, parts: Vec<ReadBuf>) -> Bound<'_, PyBytes> {
    let total = parts.iter().map(ReadBuf::len).sum();
    let digest = detached(py, total, || blake3_of_parts(&parts));
    PyBytes::new(py, &digest)
}

struct Blake3Job {
    parts: Vec<ReadBuf>,
    digest: [u8; 32],
}

impl PureJob for Blake3Job {
    fn work(&mut self) {
        self.digest = blake3_of_parts(&self.parts);
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(PyBytes::new(py, &self.digest).into_any().unbind())
    }

    fn size_hint(&self) -> usize {
        self.parts.iter().map(ReadBuf::len).sum()
    }
}

#[pyfunction]
fn blake3_job(parts: Vec<ReadBuf>) -> Job {
    Job::new(Blake3Job {
        parts,
        digest: [0; 32],
    })
}

/// Goes on from the checksum of what came before (its length does not matter to these CRCs).
fn crc(py: Python<'_>, algorithm: CrcAlgorithm, data: &ReadBuf, init: u64) -> u64 {
    detached(py, data.len(), || {
        let checksum = crc_fast::checksum(algorithm, data.as_slice());
        if init == 0 {
            checksum
        } else {
            crc_fast::checksum_combine(algorithm, init, checksum, data.len() as u64)
        }
    })
}

#[pyfunction]
#[pyo3(signature = (data, init = 0))]
fn crc32(py: Python<'_>, data: ReadBuf, init: u32) -> u64 {
    crc(py, CRC32, &data, init.into())
}

#[pyfunction]
#[pyo3(signature = (data, init = 0))]
fn crc32c(py: Python<'_>, data: ReadBuf, init: u32) -> u64 {
    crc(py, CRC32C, &data, init.into())
}

#[pyfunction]
#[pyo3(signature = (data, init = 0))]
fn crc64nvme(py: Python<'_>, data: ReadBuf, init: u64) -> u64 {
    crc(py, CRC64NVME, &data, init)
}

#[pyfunction]
fn crc32_combine(first: u32, second: u32, second_size: u64) -> u64 {
    crc_fast::checksum_combine(CRC32, first.into(), second.into(), second_size)
}

#[pyfunction]
fn crc32c_combine(first: u32, second: u32, second_size: u64) -> u64 {
    crc_fast::checksum_combine(CRC32C, first.into(), second.into(), second_size)
}

#[pyfunction]
fn crc64nvme_combine(first: u64, second: u64, second_size: u64) -> u64 {
    crc_fast::checksum_combine(CRC64NVME, first, second, second_size)
}

#[pyfunction]
fn hmac_sha256(py: Python<'_>, key: ReadBuf, message: ReadBuf) -> Bound<'_, PyBytes> {
    let tag = detached(py, message.len(), || {
        hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, key.as_slice()),
            message.as_slice(),
        )
    });
    PyBytes::new(py, tag.as_ref())
}

struct OutputSize(usize);

impl hkdf::KeyType for OutputSize {
    fn len(&self) -> usize {
        self.0
    }
}

/// RFC 5869. `out` must not exceed 255 * 32 bytes (checked by ring).
pub fn hkdf_sha256_into(secret: &[u8], salt: &[u8], info: &[u8], out: &mut [u8]) -> PyResult<()> {
    let too_long = |_| PyValueError::new_err("HKDF-SHA256 gives at most 8160 bytes");
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(secret)
        .expand(&[info], OutputSize(out.len()))
        .and_then(|okm| okm.fill(out))
        .map_err(too_long)
}

#[pyfunction]
#[pyo3(signature = (secret, salt, info, size = 32))]
fn hkdf_sha256<'py>(
    py: Python<'py>,
    secret: ReadBuf,
    salt: ReadBuf,
    info: ReadBuf,
    size: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    if size > 255 * 32 {
        return Err(PyValueError::new_err(
            "HKDF-SHA256 gives at most 8160 bytes",
        ));
    }
    PyBytes::new_with(py, size, |out| {
        hkdf_sha256_into(secret.as_slice(), salt.as_slice(), info.as_slice(), out)
    })
}

#[pyfunction]
fn compare_digest(a: ReadBuf, b: ReadBuf) -> bool {
    let (a, b) = (a.as_slice(), b.as_slice());
    if a.len() != b.len() {
        return false;
    }
    let mut difference = 0u8;
    for (x, y) in a.iter().zip(b) {
        // The optimiser may not shorten a loop whose every step it cannot see through.
        difference = std::hint::black_box(difference | (x ^ y));
    }
    difference == 0
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(py_blake3, m)?)?;
    m.add_function(wrap_pyfunction!(blake3_parts, m)?)?;
    m.add_function(wrap_pyfunction!(blake3_job, m)?)?;
    m.add_function(wrap_pyfunction!(py_sha256, m)?)?;
    m.add_function(wrap_pyfunction!(py_sha1, m)?)?;
    m.add_function(wrap_pyfunction!(py_md5, m)?)?;
    m.add_function(wrap_pyfunction!(crc32, m)?)?;
    m.add_function(wrap_pyfunction!(crc32c, m)?)?;
    m.add_function(wrap_pyfunction!(crc64nvme, m)?)?;
    m.add_function(wrap_pyfunction!(crc32_combine, m)?)?;
    m.add_function(wrap_pyfunction!(crc32c_combine, m)?)?;
    m.add_function(wrap_pyfunction!(crc64nvme_combine, m)?)?;
    m.add_function(wrap_pyfunction!(hmac_sha256, m)?)?;
    m.add_function(wrap_pyfunction!(hkdf_sha256, m)?)?;
    m.add_function(wrap_pyfunction!(compare_digest, m)?)
}
