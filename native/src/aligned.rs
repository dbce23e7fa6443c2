//! Memory for direct I/O: aligned, reused, seen from Python as a buffer.
//!
//! Blocks are reused because glibc maps and unmaps each large one anew, which costs more than
//! writing it to disk does.
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

pub const ALIGN_BYTES: usize = 4096;

/// No buffer of the store is larger (a write batch is 1 MiB); more is a mistake of the caller.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Kept for reuse; what is freed beyond goes back to the system.
const POOLED_MAX_BYTES: usize = 32 * 1024 * 1024;

struct Block {
    address: *mut u8,
    size: usize,
}

unsafe impl Send for Block {}
unsafe impl Sync for Block {}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size, ALIGN_BYTES).ok()
}

#[derive(Default)]
struct FreeList {
    blocks: HashMap<usize, Vec<Block>>,
    pooled_bytes: usize,
}

static FREE: Mutex<Option<FreeList>> = Mutex::new(None);

fn free_list() -> MutexGuard<'static, Option<FreeList>> {
    match FREE.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

fn obtain(size: usize, zero: bool) -> Option<Block> {
    let reused = {
        let mut guard = free_list();
        let list = guard.get_or_insert_with(FreeList::default);
        let block = list.blocks.get_mut(&size).and_then(Vec::pop);
        if block.is_some() {
            list.pooled_bytes -= size;
        }
        block
    };
    if let Some(block) = reused {
        if zero {
            unsafe { std::ptr::write_bytes(block.address, 0, size) };
        }
        return Some(block);
    }
    let address = unsafe { alloc_zeroed(layout(size)?) };
    (!address.is_null()).then_some(Block { address, size })
}

fn give_back(block: Block) {
    {
        let mut guard = free_list();
        let list = guard.get_or_insert_with(FreeList::default);
        if list.pooled_bytes + block.size <= POOLED_MAX_BYTES {
            list.pooled_bytes += block.size;
            list.blocks.entry(block.size).or_default().push(block);
            return;
        }
    }
    if let Some(layout) = layout(block.size) {
        unsafe { dealloc(block.address, layout) };
    }
}

#[pyclass(frozen, module = "o3storage._native")]
pub struct AlignedBuffer {
    block: Block,
    length: usize,
}

#[pymethods]
impl AlignedBuffer {
    #[new]
    #[pyo3(signature = (size, zero = true))]
    fn new(size: usize, zero: bool) -> PyResult<Self> {
        if size == 0 || size > MAX_BYTES {
            return Err(PyValueError::new_err(format!(
                "an aligned buffer has 1 to {MAX_BYTES} bytes, not {size}"
            )));
        }
        let block = obtain(size.next_multiple_of(ALIGN_BYTES), zero)
            .ok_or_else(|| PyMemoryError::new_err("no memory for an aligned buffer"))?;
        Ok(Self {
            block,
            length: size,
        })
    }

    fn __len__(&self) -> usize {
        self.length
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: std::ffi::c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let (address, length) = (this.block.address, this.length);
        let status = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                address.cast(),
                length as ffi::Py_ssize_t,
                0,
                flags,
            )
        };
        if status == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // Every exported view holds a reference to this object, so none is left here.
        give_back(Block {
            address: self.block.address,
            size: self.block.size,
        });
    }
}

/// Blocks of up to 4 MiB come from the heap and stay in it, and threads share two arenas.
#[pyfunction]
fn tune_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 * 1024 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 * 1024 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<AlignedBuffer>()?;
    m.add_function(wrap_pyfunction!(tune_memory, m)?)
}
