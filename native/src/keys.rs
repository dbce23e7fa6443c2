//! Ed25519, X25519 and randomness.
use crate::buffers::{detached, exactly, ReadBuf};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring::signature::{Ed25519KeyPair, KeyPair, UnparsedPublicKey, ED25519};
use x25519_dalek::{PublicKey, StaticSecret};

/// More than this in one call is a mistake of the caller.
const RANDOM_MAX_BYTES: usize = 1024 * 1024;

fn system_random(out: &mut [u8]) -> PyResult<()> {
    let mut filled = 0;
    while filled < out.len() {
        let rest = &mut out[filled..];
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        if got < 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                return Err(PyOSError::new_err(error.raw_os_error()));
            }
        } else {
            filled += got as usize;
        }
    }
    Ok(())
}

/// XORs the processor's randomness over `out`: the result is as good as the better of the two. A
/// processor whose generator fails (it says so, or gives the all-ones or zero word of a known
/// defect) adds nothing.
#[cfg(target_arch = "x86_64")]
fn mix_hardware(out: &mut [u8]) {
    #[target_feature(enable = "rdrand")]
    unsafe fn mix(out: &mut [u8]) {
        for piece in out.chunks_mut(8) {
            let mut word = 0u64;
            // Ten tries, as the processor's manual advises.
            let ok = (0..10).any(|_| core::arch::x86_64::_rdrand64_step(&mut word) == 1);
            if !ok || word == u64::MAX {
                return;
            }
            for (byte, random) in piece.iter_mut().zip(word.to_le_bytes()) {
                *byte ^= random;
            }
        }
    }
    if std::arch::is_x86_feature_detected!("rdrand") {
        unsafe { mix(out) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn mix_hardware(_out: &mut [u8]) {}

pub fn fill_random(out: &mut [u8]) -> PyResult<()> {
    system_random(out)?;
    mix_hardware(out);
    Ok(())
}

#[pyfunction]
fn random_bytes(py: Python<'_>, size: usize) -> PyResult<Bound<'_, PyBytes>> {
    if size > RANDOM_MAX_BYTES {
        return Err(PyValueError::new_err("at most 1 MiB of randomness a call"));
    }
    PyBytes::new_with(py, size, fill_random)
}

fn key_pair(seed: &[u8]) -> PyResult<Ed25519KeyPair> {
    let seed = exactly::<32>("seed", seed)?;
    Ed25519KeyPair::from_seed_unchecked(&seed)
        .map_err(|_| PyValueError::new_err("not an Ed25519 seed"))
}

type TwoBytes<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>);

#[pyfunction]
fn ed25519_generate(py: Python<'_>) -> PyResult<TwoBytes<'_>> {
    let mut seed = [0; 32];
    fill_random(&mut seed)?;
    let pair = key_pair(&seed)?;
    Ok((
        PyBytes::new(py, &seed),
        PyBytes::new(py, pair.public_key().as_ref()),
    ))
}

#[pyfunction]
fn ed25519_public<'py>(py: Python<'py>, seed: ReadBuf) -> PyResult<Bound<'py, PyBytes>> {
    let pair = key_pair(seed.as_slice())?;
    Ok(PyBytes::new(py, pair.public_key().as_ref()))
}

#[pyfunction]
fn ed25519_sign<'py>(
    py: Python<'py>,
    seed: ReadBuf,
    message: ReadBuf,
) -> PyResult<Bound<'py, PyBytes>> {
    let pair = key_pair(seed.as_slice())?;
    let signature = detached(py, message.len(), || pair.sign(message.as_slice()));
    Ok(PyBytes::new(py, signature.as_ref()))
}

#[pyfunction]
fn ed25519_verify(
    py: Python<'_>,
    public: ReadBuf,
    message: ReadBuf,
    signature: ReadBuf,
) -> PyResult<bool> {
    let public = exactly::<32>("public key", public.as_slice())?;
    Ok(detached(py, message.len(), || {
        UnparsedPublicKey::new(&ED25519, public)
            .verify(message.as_slice(), signature.as_slice())
            .is_ok()
    }))
}

fn x25519_secret(secret: &[u8]) -> PyResult<StaticSecret> {
    Ok(StaticSecret::from(exactly::<32>("secret key", secret)?))
}

#[pyfunction]
fn x25519_generate(py: Python<'_>) -> PyResult<TwoBytes<'_>> {
    let mut seed = [0; 32];
    fill_random(&mut seed)?;
    let secret = StaticSecret::from(seed);
    let public = PublicKey::from(&secret);
    Ok((
        PyBytes::new(py, secret.as_bytes()),
        PyBytes::new(py, public.as_bytes()),
    ))
}

#[pyfunction]
fn x25519_public<'py>(py: Python<'py>, secret: ReadBuf) -> PyResult<Bound<'py, PyBytes>> {
    let secret = x25519_secret(secret.as_slice())?;
    Ok(PyBytes::new(py, PublicKey::from(&secret).as_bytes()))
}

#[pyfunction]
fn x25519_agree<'py>(
    py: Python<'py>,
    secret: ReadBuf,
    public: ReadBuf,
) -> PyResult<Bound<'py, PyBytes>> {
    let secret = x25519_secret(secret.as_slice())?;
    let public = PublicKey::from(exactly::<32>("public key", public.as_slice())?);
    let shared = secret.diffie_hellman(&public);
    if !shared.was_contributory() {
        return Err(PyValueError::new_err("public key of low order"));
    }
    Ok(PyBytes::new(py, shared.as_bytes()))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(random_bytes, m)?)?;
    m.add_function(wrap_pyfunction!(ed25519_generate, m)?)?;
    m.add_function(wrap_pyfunction!(ed25519_public, m)?)?;
    m.add_function(wrap_pyfunction!(ed25519_sign, m)?)?;
    m.add_function(wrap_pyfunction!(ed25519_verify, m)?)?;
    m.add_function(wrap_pyfunction!(x25519_generate, m)?)?;
    m.add_function(wrap_pyfunction!(x25519_public, m)?)?;
    m.add_function(wrap_pyfunction!(x25519_agree, m)?)
}
