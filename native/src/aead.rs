//! ChaCha20-Poly1305 into buffers of the caller, alone or together with the digests of the
//! plaintext and the hash of the record.
use crate::buffers::{detached, exactly, NewBytes, ReadBuf, WriteBuf};
use crate::digester::{Digester, SharedState};
use crate::jobs::{Job, PureJob};
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt};
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey, CHACHA20_POLY1305};
use std::sync::Arc;

pub const TAG_BYTES: usize = 16;

/// BLAKE3, at the start of a record.
const HASH_BYTES: usize = 32;

pyo3::create_exception!(
    _native,
    SealError,
    PyValueError,
    "Ciphertext, associated data, nonce or key do not belong together."
);

fn seal_error() -> PyErr {
    SealError::new_err("unsealing failed: wrong key, or the sealed bytes were altered")
}

/// 12 bytes, from an int (little-endian, the last four zero) or from 12 bytes.
struct NonceArg([u8; 12]);

impl<'a, 'py> FromPyObject<'a, 'py> for NonceArg {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(number) = object.cast::<PyInt>() {
            let number: u64 = number
                .extract()
                .map_err(|_| PyOverflowError::new_err("a nonce is an int from 0 to 2**64 - 1"))?;
            return Ok(Self(frame_nonce(number)));
        }
        Ok(Self(exactly::<12>(
            "nonce",
            ReadBuf::new(&object)?.as_slice(),
        )?))
    }
}

/// A number as a nonce: little-endian, the last four bytes zero.
pub fn frame_nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce
}

/// A sealing key; the expanded key stays inside the module.
#[pyclass(frozen, module = "o3storage._native")]
pub struct ChaChaKey {
    key: Arc<LessSafeKey>,
}

fn expand(key: &[u8; 32]) -> PyResult<ChaChaKey> {
    let unbound = UnboundKey::new(&CHACHA20_POLY1305, key)
        .map_err(|_| PyValueError::new_err("key must be 32 bytes"))?;
    Ok(ChaChaKey {
        key: Arc::new(LessSafeKey::new(unbound)),
    })
}

/// Copies `plaintext` to `out` and seals it there; `out` holds 16 bytes more.
fn seal_to(
    key: &LessSafeKey,
    nonce: [u8; 12],
    aad: &[u8],
    plaintext: &[u8],
    out: &mut [u8],
    digester: Option<&SharedState>,
) -> bool {
    if let Some(digester) = digester {
        digester.update(plaintext);
    }
    let (body, tag) = out.split_at_mut(plaintext.len());
    // Same address: sealing in place.
    if !std::ptr::eq(plaintext.as_ptr(), body.as_ptr()) {
        body.copy_from_slice(plaintext);
    }
    let nonce = Nonce::assume_unique_for_key(nonce);
    match key.seal_in_place_separate_tag(nonce, Aad::from(aad), body) {
        Ok(computed) => {
            tag[..TAG_BYTES].copy_from_slice(computed.as_ref());
            true
        }
        Err(_) => false,
    }
}

/// `out` has the size of `ciphertext`; the plaintext is at its start. Zeroed when it fails.
fn unseal_to(
    key: &LessSafeKey,
    nonce: [u8; 12],
    aad: &[u8],
    ciphertext: &[u8],
    out: &mut [u8],
    digester: Option<&SharedState>,
) -> bool {
    if !std::ptr::eq(ciphertext.as_ptr(), out.as_ptr()) {
        out.copy_from_slice(ciphertext);
    }
    let nonce = Nonce::assume_unique_for_key(nonce);
    match key.open_in_place(nonce, Aad::from(aad), out) {
        Ok(plaintext) => {
            if let Some(digester) = digester {
                digester.update(plaintext);
            }
            true
        }
        Err(_) => {
            out.fill(0);
            false
        }
    }
}

fn sealed_size(plaintext: usize, out: usize) -> PyResult<usize> {
    let size = plaintext + TAG_BYTES;
    if out < size {
        return Err(PyValueError::new_err(format!(
            "out must have room for {size} bytes (plaintext and tag), has {out}"
        )));
    }
    Ok(size)
}

fn check_overlap(input: &[u8], out: &[u8]) -> PyResult<()> {
    let (a, b) = (input.as_ptr() as usize, out.as_ptr() as usize);
    if a != b && a < b + out.len() && b < a + input.len() {
        return Err(PyValueError::new_err(
            "out must not overlap the input unless both start at the same address",
        ));
    }
    Ok(())
}

fn plain_size(ciphertext: usize) -> PyResult<usize> {
    ciphertext.checked_sub(TAG_BYTES).ok_or_else(seal_error)
}

/// What `seal_into` of one size never does: ring refuses more than 256 GiB under one nonce.
fn too_large() -> PyErr {
    PyValueError::new_err("plaintext is too large for one nonce")
}

fn shared(digester: Option<Bound<'_, Digester>>) -> Option<SharedState> {
    digester.map(|digester| digester.get().shared())
}

#[pymethods]
impl ChaChaKey {
    #[new]
    fn new(key: ReadBuf) -> PyResult<Self> {
        expand(&exactly::<32>("key", key.as_slice())?)
    }

    #[staticmethod]
    fn derive(secret: ReadBuf, salt: ReadBuf, info: ReadBuf) -> PyResult<Self> {
        let mut key = [0; 32];
        crate::hashes::hkdf_sha256_into(
            secret.as_slice(),
            salt.as_slice(),
            info.as_slice(),
            &mut key,
        )?;
        expand(&key)
    }

    #[pyo3(signature = (nonce, aad, plaintext, digester = None))]
    fn seal(
        &self,
        py: Python<'_>,
        nonce: NonceArg,
        aad: ReadBuf,
        plaintext: ReadBuf,
        digester: Option<Bound<'_, Digester>>,
    ) -> PyResult<Py<PyAny>> {
        let size = plaintext.len() + TAG_BYTES;
        let mut out = NewBytes::new(py, size)?;
        let digester = shared(digester);
        let sealed = detached(py, size, || {
            seal_to(
                &self.key,
                nonce.0,
                aad.as_slice(),
                plaintext.as_slice(),
                out.as_mut_slice(),
                digester.as_ref(),
            )
        });
        if !sealed {
            return Err(too_large());
        }
        Ok(out.into_bytes(py, size))
    }

    #[pyo3(signature = (nonce, aad, plaintext, out, digester = None))]
    fn seal_into(
        &self,
        py: Python<'_>,
        nonce: NonceArg,
        aad: ReadBuf,
        plaintext: ReadBuf,
        mut out: WriteBuf,
        digester: Option<Bound<'_, Digester>>,
    ) -> PyResult<usize> {
        let size = sealed_size(plaintext.len(), out.len())?;
        check_overlap(plaintext.as_slice(), out.as_mut_slice())?;
        let digester = shared(digester);
        let sealed = detached(py, size, || {
            seal_to(
                &self.key,
                nonce.0,
                aad.as_slice(),
                plaintext.as_slice(),
                &mut out.as_mut_slice()[..size],
                digester.as_ref(),
            )
        });
        if sealed {
            Ok(size)
        } else {
            Err(too_large())
        }
    }

    #[pyo3(signature = (nonce, aad, plaintext, out, prefix, digester = None))]
    fn seal_hash_into<'py>(
        &self,
        py: Python<'py>,
        nonce: NonceArg,
        aad: ReadBuf,
        plaintext: ReadBuf,
        mut out: WriteBuf,
        prefix: ReadBuf,
        digester: Option<Bound<'py, Digester>>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let size = sealed_size(plaintext.len(), out.len())?;
        check_overlap(plaintext.as_slice(), out.as_mut_slice())?;
        let digester = shared(digester);
        let hash = detached(py, size, || {
            let out = &mut out.as_mut_slice()[..size];
            seal_to(
                &self.key,
                nonce.0,
                aad.as_slice(),
                plaintext.as_slice(),
                out,
                digester.as_ref(),
            )
            .then(|| {
                let mut hasher = blake3::Hasher::new();
                hasher.update(prefix.as_slice());
                hasher.update(out);
                hasher.finalize()
            })
        });
        match hash {
            Some(hash) => Ok(PyBytes::new(py, hash.as_bytes())),
            None => Err(too_large()),
        }
    }

    #[pyo3(signature = (nonce, aad, ciphertext, digester = None))]
    fn unseal(
        &self,
        py: Python<'_>,
        nonce: NonceArg,
        aad: ReadBuf,
        ciphertext: ReadBuf,
        digester: Option<Bound<'_, Digester>>,
    ) -> PyResult<Py<PyAny>> {
        let size = plain_size(ciphertext.len())?;
        let mut out = NewBytes::new(py, size)?;
        let digester = shared(digester);
        let unsealed = detached(py, size, || {
            unseal_apart(
                &self.key,
                nonce.0,
                aad.as_slice(),
                ciphertext.as_slice(),
                out.as_mut_slice(),
                digester.as_ref(),
            )
        });
        if !unsealed {
            return Err(seal_error());
        }
        Ok(out.into_bytes(py, size))
    }

    #[pyo3(signature = (nonce, aad, ciphertext, out, digester = None))]
    fn unseal_into(
        &self,
        py: Python<'_>,
        nonce: NonceArg,
        aad: ReadBuf,
        ciphertext: ReadBuf,
        mut out: WriteBuf,
        digester: Option<Bound<'_, Digester>>,
    ) -> PyResult<usize> {
        let sealed_size = ciphertext.len();
        let size = plain_size(sealed_size)?;
        if out.len() < sealed_size {
            return Err(PyValueError::new_err(format!(
                "out must have room for {sealed_size} bytes (the tag is opened there), has {}",
                out.len()
            )));
        }
        check_overlap(ciphertext.as_slice(), out.as_mut_slice())?;
        let digester = shared(digester);
        let unsealed = detached(py, size, || {
            unseal_to(
                &self.key,
                nonce.0,
                aad.as_slice(),
                ciphertext.as_slice(),
                &mut out.as_mut_slice()[..sealed_size],
                digester.as_ref(),
            )
        });
        if unsealed {
            Ok(size)
        } else {
            Err(seal_error())
        }
    }

    #[pyo3(signature = (nonce, aad, plaintext, digester = None))]
    fn seal_job(
        &self,
        py: Python<'_>,
        nonce: NonceArg,
        aad: ReadBuf,
        plaintext: ReadBuf,
        digester: Option<Bound<'_, Digester>>,
    ) -> PyResult<Job> {
        let out = Target::New(NewBytes::new(py, plaintext.len() + TAG_BYTES)?);
        Ok(self.job(Direction::Seal, nonce, aad, plaintext, out, digester))
    }

    #[pyo3(signature = (nonce, aad, plaintext, out, digester = None))]
    fn seal_into_job(
        &self,
        nonce: NonceArg,
        aad: ReadBuf,
        plaintext: ReadBuf,
        mut out: WriteBuf,
        digester: Option<Bound<'_, Digester>>,
    ) -> PyResult<Job> {
        sealed_size(plaintext.len(), out.len())?;
        check_overlap(plaintext.as_slice(), out.as_mut_slice())?;
        let out = Target::Lent(out);
        Ok(self.job(Direction::Seal, nonce, aad, plaintext, out, digester))
    }

    #[pyo3(signature = (nonce, aad, ciphertext, digester = None))]
    fn unseal_job(
        &self,
        py: Python<'_>,
        nonce: NonceArg,
        aad: ReadBuf,
        ciphertext: ReadBuf,
        digester: Option<Bound<'_, Digester>>,
    ) -> PyResult<Job> {
        let out = Target::New(NewBytes::new(py, plain_size(ciphertext.len())?)?);
        Ok(self.job(Direction::Unseal, nonce, aad, ciphertext, out, digester))
    }

    #[pyo3(signature = (nonce, aad, record, prefix_bytes))]
    fn open_record_job(
        &self,
        py: Python<'_>,
        nonce: NonceArg,
        aad: ReadBuf,
        record: ReadBuf,
        prefix_bytes: usize,
    ) -> PyResult<Job> {
        if prefix_bytes < HASH_BYTES {
            return Err(PyValueError::new_err("the prefix begins with the hash"));
        }
        let sealed = record.len().checked_sub(prefix_bytes);
        let out = NewBytes::new(py, plain_size(sealed.ok_or_else(seal_error)?)?)?;
        Ok(Job::new(RecordJob {
            key: Arc::clone(&self.key),
            nonce: nonce.0,
            aad,
            record,
            prefix_bytes,
            out,
            succeeded: false,
        }))
    }
}

impl ChaChaKey {
    /// The key itself, for jobs of other modules that seal and unseal.
    pub fn shared_key(&self) -> Arc<LessSafeKey> {
        Arc::clone(&self.key)
    }

    fn job(
        &self,
        direction: Direction,
        nonce: NonceArg,
        aad: ReadBuf,
        input: ReadBuf,
        out: Target,
        digester: Option<Bound<'_, Digester>>,
    ) -> Job {
        Job::new(SealJob {
            key: Arc::clone(&self.key),
            direction,
            nonce: nonce.0,
            aad,
            input,
            out,
            digester: shared(digester),
            succeeded: false,
        })
    }
}

/// Opens into exactly the plaintext's size, with the tag checked first from the ciphertext's own
/// end, so that a new `bytes` object needs no shortening.
fn unseal_apart(
    key: &LessSafeKey,
    nonce: [u8; 12],
    aad: &[u8],
    ciphertext: &[u8],
    out: &mut [u8],
    digester: Option<&SharedState>,
) -> bool {
    let (body, tag) = ciphertext.split_at(out.len());
    let Ok(tag) = <[u8; TAG_BYTES]>::try_from(tag) else {
        return false;
    };
    out.copy_from_slice(body);
    let nonce = Nonce::assume_unique_for_key(nonce);
    match key.open_in_place_separate_tag(nonce, Aad::from(aad), tag.into(), out, 0..) {
        Ok(plaintext) => {
            if let Some(digester) = digester {
                digester.update(plaintext);
            }
            true
        }
        Err(_) => {
            out.fill(0);
            false
        }
    }
}

enum Direction {
    Seal,
    Unseal,
}

enum Target {
    New(NewBytes),
    Lent(WriteBuf),
}

struct SealJob {
    key: Arc<LessSafeKey>,
    direction: Direction,
    nonce: [u8; 12],
    aad: ReadBuf,
    input: ReadBuf,
    out: Target,
    digester: Option<SharedState>,
    succeeded: bool,
}

impl SealJob {
    fn out_size(&self) -> usize {
        match self.direction {
            Direction::Seal => self.input.len() + TAG_BYTES,
            Direction::Unseal => self.input.len() - TAG_BYTES,
        }
    }
}

impl PureJob for SealJob {
    fn work(&mut self) {
        let size = self.out_size();
        let out = match &mut self.out {
            Target::New(bytes) => bytes.as_mut_slice(),
            Target::Lent(buffer) => &mut buffer.as_mut_slice()[..size],
        };
        let (aad, input) = (self.aad.as_slice(), self.input.as_slice());
        let digester = self.digester.as_ref();
        self.succeeded = match self.direction {
            Direction::Seal => seal_to(&self.key, self.nonce, aad, input, out, digester),
            Direction::Unseal => unseal_apart(&self.key, self.nonce, aad, input, out, digester),
        };
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let size = self.out_size();
        if !self.succeeded {
            return Err(match self.direction {
                Direction::Seal => too_large(),
                Direction::Unseal => seal_error(),
            });
        }
        match self.out {
            Target::New(bytes) => Ok(bytes.into_bytes(py, size)),
            Target::Lent(_buffer) => Ok(size.into_pyobject(py)?.into_any().unbind()),
        }
    }

    fn size_hint(&self) -> usize {
        self.input.len()
    }
}

/// A record as it was read: the hash of all that follows it, a header, ciphertext and tag. Checked
/// and unsealed in one job, while it is in this core's cache.
struct RecordJob {
    key: Arc<LessSafeKey>,
    nonce: [u8; 12],
    aad: ReadBuf,
    record: ReadBuf,
    prefix_bytes: usize,
    out: NewBytes,
    succeeded: bool,
}

impl PureJob for RecordJob {
    fn work(&mut self) {
        let (hash, rest) = self.record.as_slice().split_at(HASH_BYTES);
        self.succeeded = blake3::hash(rest).as_bytes() == hash
            && unseal_apart(
                &self.key,
                self.nonce,
                self.aad.as_slice(),
                &rest[self.prefix_bytes - HASH_BYTES..],
                self.out.as_mut_slice(),
                None,
            );
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if !self.succeeded {
            return Err(seal_error());
        }
        let size = self.record.len() - self.prefix_bytes - TAG_BYTES;
        Ok(self.out.into_bytes(py, size))
    }

    fn size_hint(&self) -> usize {
        self.record.len()
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("TAG_BYTES", TAG_BYTES)?;
    m.add("SealError", m.py().get_type::<SealError>())?;
    m.add_class::<ChaChaKey>()
}
