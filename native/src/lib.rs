//! The one native module of O3Storage: bindings over well-kept crates, no logic of the store.
use pyo3::prelude::*;

mod aead;
mod buffers;
mod digester;
mod hashes;
mod index;
mod jobs;
mod keys;

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    jobs::register(m)?;
    hashes::register(m)?;
    digester::register(m)?;
    aead::register(m)?;
    keys::register(m)?;
    index::register(m)
}
