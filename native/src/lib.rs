//! The one native module of O3Storage: bindings over well-kept crates, no logic of the store.
use pyo3::prelude::*;

mod aead;
mod aligned;
mod buffers;
mod digester;
mod files;
mod hashes;
mod index;
mod jobs;
mod keys;
mod pool;
mod send;
mod tls;
mod tls_config;

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    jobs::register(m)?;
    hashes::register(m)?;
    digester::register(m)?;
    aead::register(m)?;
    keys::register(m)?;
    aligned::register(m)?;
    files::register(m)?;
    pool::register(m)?;
    send::register(m)?;
    tls_config::register(m)?;
    tls::register(m)?;
    index::register(m)
}
