//! Jobs: work that is prepared and collected with the interpreter lock and done without it.
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Mutex;

/// One unit of work. Implementations hold what they need (`ReadBuf`, `WriteBuf`, `NewBytes`, owned
/// values) and never touch Python in `work`.
///
/// To offer one to Python, return `Job::new(MyWork { .. })` from a `#[pyfunction]`; it then has
/// `.run()` (in place) and can be given to the pool.
pub trait PureJob: Send {
    /// Does the work, in any thread, without the interpreter lock. Errors are kept for `finish`.
    fn work(&mut self);

    /// Makes the Python result and gives all buffers back. Called attached to the interpreter.
    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>>;

    /// Bytes of work, roughly: small jobs keep the interpreter lock when run in place.
    fn size_hint(&self) -> usize {
        usize::MAX
    }
}

/// Work, and whether it panicked.
pub struct Work {
    pub inner: Box<dyn PureJob>,
    pub panicked: bool,
    /// Which queue of the pool it belongs to.
    pub lane: Lane,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Short file operations that a caller waits for.
    File = 0,
    /// Computation.
    Pure = 1,
    /// Computation nobody waits for at once (merges, scrub), at low priority.
    Background = 2,
    /// What may block for seconds for reasons outside this machine: name look-up.
    Slow = 3,
    /// Log output, in order, one thread.
    Log = 4,
}

pub const LANES: usize = 5;

impl Work {
    pub fn work(&mut self) {
        self.panicked = catch_unwind(AssertUnwindSafe(|| self.inner.work())).is_err();
    }

    pub fn finish(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if self.panicked {
            drop(self.inner);
            return Err(PyRuntimeError::new_err(
                "a native job panicked; this is a defect, please report it with the lines above",
            ));
        }
        self.inner.finish(py)
    }
}

/// A job as Python sees it: run once, either in place or by a pool.
#[pyclass(frozen, module = "o3storage._native")]
pub struct Job {
    work: Mutex<Option<Work>>,
}

impl Job {
    pub fn new(inner: impl PureJob + 'static) -> Self {
        Self::on_lane(inner, Lane::Pure)
    }

    pub fn on_lane(inner: impl PureJob + 'static, lane: Lane) -> Self {
        Self {
            work: Mutex::new(Some(Work {
                inner: Box::new(inner),
                panicked: false,
                lane,
            })),
        }
    }

    /// Takes the work out; a job runs once.
    pub fn take(&self) -> PyResult<Work> {
        let mut slot = match self.work.lock() {
            Ok(slot) => slot,
            Err(poisoned) => poisoned.into_inner(),
        };
        slot.take()
            .ok_or_else(|| PyRuntimeError::new_err("this job was already run or submitted"))
    }
}

#[pymethods]
impl Job {
    /// Does the work in the calling thread.
    fn run(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let mut work = self.take()?;
        if work.inner.size_hint() >= crate::buffers::DETACH_BYTES {
            py.detach(|| work.work());
        } else {
            work.work();
        }
        work.finish(py)
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Job>()
}
