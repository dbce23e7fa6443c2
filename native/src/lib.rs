//! The one native module of O3Storage: bindings over well-kept crates, no logic of the store.
use pyo3::prelude::*;

mod buffers;
mod index;
mod jobs;

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    jobs::register(m)?;
    index::register(m)
}
