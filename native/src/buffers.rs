//! Views of Python buffers that outlive the interpreter lock.
//!
//! `&[u8]` arguments of PyO3 accept only `bytes`; these accept any contiguous buffer (`bytes`,
//! `bytearray`, `memoryview` and its slices, `AlignedBuffer`), check writability, and may move to
//! another thread. The Python side promises not to write to a buffer while it is lent: the store has
//! one Python thread and a job owns its buffers until it is drained.
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use std::mem::MaybeUninit;

/// Below this many bytes the work is cheaper than giving the interpreter lock away and back.
pub const DETACH_BYTES: usize = 8 * 1024;

struct RawView(Box<ffi::Py_buffer>);

// The view is only an address range plus an owning reference; the reference is touched only while
// attached to the interpreter (in `Drop`).
unsafe impl Send for RawView {}
unsafe impl Sync for RawView {}

impl RawView {
    fn new(object: &Bound<'_, PyAny>, flags: std::ffi::c_int) -> PyResult<Self> {
        let mut view = Box::new(MaybeUninit::<ffi::Py_buffer>::uninit());
        let status = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), view.as_mut_ptr(), flags) };
        if status != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        let raw = Box::into_raw(view).cast::<ffi::Py_buffer>();
        Ok(Self(unsafe { Box::from_raw(raw) }))
    }
}

impl Drop for RawView {
    fn drop(&mut self) {
        // Jobs hand their buffers back on the loop's thread, which is attached already.
        Python::attach(|_py| unsafe { ffi::PyBuffer_Release(&mut *self.0) });
    }
}

/// A lent buffer to read from.
pub struct ReadBuf(RawView);

impl ReadBuf {
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(RawView::new(object, ffi::PyBUF_SIMPLE)?))
    }

    pub fn as_slice(&self) -> &[u8] {
        let length = self.0 .0.len as usize;
        if length == 0 {
            return &[];
        }
        unsafe { std::slice::from_raw_parts(self.0 .0.buf.cast::<u8>(), length) }
    }

    pub fn len(&self) -> usize {
        self.0 .0.len as usize
    }

    #[allow(dead_code)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for ReadBuf {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Self::new(&object)
    }
}

/// A lent buffer to write into. `BufferError` if it is read-only.
pub struct WriteBuf(RawView);

impl WriteBuf {
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(RawView::new(object, ffi::PyBUF_WRITABLE)?))
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let length = self.0 .0.len as usize;
        if length == 0 {
            return &mut [];
        }
        unsafe { std::slice::from_raw_parts_mut(self.0 .0.buf.cast::<u8>(), length) }
    }

    pub fn len(&self) -> usize {
        self.0 .0.len as usize
    }

    #[allow(dead_code)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for WriteBuf {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Self::new(&object)
    }
}

/// A `bytes` object under construction: allocated with the interpreter lock, filled without it,
/// handed out once. Nobody else sees it before `into_bytes`.
pub struct NewBytes {
    object: Option<Py<PyAny>>,
    data: *mut u8,
    length: usize,
}

unsafe impl Send for NewBytes {}

impl NewBytes {
    pub fn new(py: Python<'_>, length: usize) -> PyResult<Self> {
        unsafe {
            let raw = ffi::PyBytes_FromStringAndSize(std::ptr::null(), length as ffi::Py_ssize_t);
            let object = Bound::from_owned_ptr_or_err(py, raw)?;
            let data = ffi::PyBytes_AsString(object.as_ptr()).cast::<u8>();
            Ok(Self {
                object: Some(object.unbind()),
                data,
                length,
            })
        }
    }

    /// Uninitialised until written: the writer must fill all that `into_bytes` hands out.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        unsafe { std::slice::from_raw_parts_mut(self.data, self.length) }
    }

    /// The first `length` bytes (all of them without a copy).
    pub fn into_bytes(mut self, py: Python<'_>, length: usize) -> Py<PyAny> {
        debug_assert!(length <= self.length);
        match self.object.take() {
            Some(object) if length == self.length => object,
            Some(_object) => {
                let filled = unsafe { std::slice::from_raw_parts(self.data, length) };
                pyo3::types::PyBytes::new(py, filled).into_any().unbind()
            }
            None => py.None(),
        }
    }
}

impl Drop for NewBytes {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            Python::attach(|_py| drop(object));
        }
    }
}

/// Runs `work`, giving the interpreter lock away when `size_bytes` makes that worth it.
pub fn detached<T: Send, F: Send + FnOnce() -> T>(py: Python<'_>, size_bytes: usize, work: F) -> T {
    if size_bytes >= DETACH_BYTES {
        py.detach(work)
    } else {
        work()
    }
}

/// `ValueError` unless `key` holds exactly `N` bytes.
pub fn exactly<const N: usize>(name: &str, data: &[u8]) -> PyResult<[u8; N]> {
    data.try_into()
        .map_err(|_| PyValueError::new_err(format!("{name} must be {N} bytes, got {}", data.len())))
}
