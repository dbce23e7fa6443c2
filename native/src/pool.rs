//! Threads that run jobs. They never take the interpreter lock: a job is prepared before it is
//! submitted and finished when it is drained, both on the event loop's thread.
use crate::jobs::{Job, Lane, Work, LANES};
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Far above what a request path keeps in flight; beyond it the caller lacks backpressure.
const PENDING_MAX: usize = 1_000_000;

/// Niceness of background threads: merges and scrubs give way to requests on a busy machine.
const BACKGROUND_NICE: libc::c_int = 10;

const STACK_BYTES: usize = 1024 * 1024;

struct Task {
    work: Work,
    future: Py<PyAny>,
}

#[derive(Default)]
struct LaneState {
    queue: VecDeque<Task>,
    threads: usize,
    idle: usize,
}

#[derive(Default)]
struct Queues {
    lanes: [LaneState; LANES],
    closing: bool,
}

struct Shared {
    queues: Mutex<Queues>,
    wake: [Condvar; LANES],
    done: Mutex<VecDeque<Task>>,
    event_fd: libc::c_int,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

impl Shared {
    fn signal(&self) {
        let one = 1u64;
        // The counter cannot overflow, and a full one is readable anyway.
        unsafe { libc::write(self.event_fd, (&raw const one).cast(), 8) };
    }

    fn run_thread(&self, lane: usize) {
        loop {
            let mut task = {
                let mut queues = lock(&self.queues);
                loop {
                    if let Some(task) = queues.lanes[lane].queue.pop_front() {
                        break task;
                    }
                    if queues.closing {
                        queues.lanes[lane].threads -= 1;
                        return;
                    }
                    queues.lanes[lane].idle += 1;
                    queues = match self.wake[lane].wait(queues) {
                        Ok(guard) => guard,
                        Err(poisoned) => poisoned.into_inner(),
                    };
                    queues.lanes[lane].idle -= 1;
                }
            };
            task.work.work();
            let mut done = lock(&self.done);
            done.push_back(task);
            if done.len() == 1 {
                drop(done);
                self.signal();
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        unsafe { libc::close(self.event_fd) };
        // Reached only by the last thread of an abandoned pool: dropping Python references there
        // would need the interpreter, which may be gone.
        std::mem::forget(std::mem::take(&mut *lock(&self.done)));
    }
}

fn start_thread(shared: &Arc<Shared>, lane: usize) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name(format!("o3-job-{lane}"))
        .stack_size(STACK_BYTES)
        .spawn(move || {
            unsafe {
                // Signals belong to the main thread.
                let mut all = std::mem::zeroed::<libc::sigset_t>();
                libc::sigfillset(&mut all);
                libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
                if lane == Lane::Background as usize {
                    // On Linux "process 0" is the calling thread. Refusal costs fairness only.
                    libc::setpriority(libc::PRIO_PROCESS, 0, BACKGROUND_NICE);
                }
            }
            shared.run_thread(lane);
        })
        .map(drop)
}

#[pyclass(frozen, module = "o3storage._native")]
pub struct Pool {
    shared: Arc<Shared>,
    limits: [usize; LANES],
    pending: AtomicUsize,
}

impl Pool {
    /// The lane whose threads are to be told, once the lock is free: a thread woken before would
    /// only go back to sleep on it.
    fn enqueue(
        &self,
        queues: &mut Queues,
        job: &Bound<'_, Job>,
        future: Bound<'_, PyAny>,
        background: bool,
    ) -> PyResult<Option<usize>> {
        if queues.closing {
            return Err(PyRuntimeError::new_err("the job pool is closed"));
        }
        if self.pending.load(Ordering::Relaxed) >= PENDING_MAX {
            return Err(PyRuntimeError::new_err("too many jobs are pending"));
        }
        let work = job.get().take()?;
        let lane = match work.lane {
            Lane::Pure if background => Lane::Background,
            lane => lane,
        } as usize;
        let state = &mut queues.lanes[lane];
        state.queue.push_back(Task {
            work,
            future: future.unbind(),
        });
        self.pending.fetch_add(1, Ordering::Relaxed);
        if state.idle > 0 && state.idle >= state.queue.len() {
            return Ok(Some(lane));
        }
        if state.threads < self.limits[lane] {
            match start_thread(&self.shared, lane) {
                Ok(()) => state.threads += 1,
                // Others will do the work; without any the job would wait for ever.
                Err(error) if state.threads == 0 => {
                    state.queue.pop_back();
                    self.pending.fetch_sub(1, Ordering::Relaxed);
                    return Err(PyOSError::new_err(format!(
                        "cannot start a job thread: {error}"
                    )));
                }
                Err(_) => return Ok(Some(lane)),
            }
            return Ok(None);
        }
        // All of its threads are at work or were told already; each looks at the queue again
        // before it sleeps.
        Ok((state.idle > 0).then_some(lane))
    }
}

#[pymethods]
impl Pool {
    #[new]
    #[pyo3(signature = (file_threads = 4, pure_threads = 2))]
    fn new(file_threads: usize, pure_threads: usize) -> PyResult<Self> {
        let event_fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if event_fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(PyOSError::new_err((error.raw_os_error(), "eventfd")));
        }
        let mut limits = [1; LANES];
        limits[Lane::File as usize] = file_threads.clamp(1, 64);
        limits[Lane::Pure as usize] = pure_threads.clamp(1, 64);
        // Two: one dead name server must not hold up the other look-ups.
        limits[Lane::Slow as usize] = 2;
        Ok(Self {
            shared: Arc::new(Shared {
                queues: Mutex::new(Queues::default()),
                wake: Default::default(),
                done: Mutex::new(VecDeque::new()),
                event_fd,
            }),
            limits,
            pending: AtomicUsize::new(0),
        })
    }

    #[getter]
    fn event_fd(&self) -> i32 {
        self.shared.event_fd
    }

    #[getter]
    fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    #[pyo3(signature = (job, future, background = false))]
    fn submit(
        &self,
        job: &Bound<'_, Job>,
        future: Bound<'_, PyAny>,
        background: bool,
    ) -> PyResult<()> {
        let told = self.enqueue(&mut lock(&self.shared.queues), job, future, background)?;
        if let Some(lane) = told {
            self.shared.wake[lane].notify_one();
        }
        Ok(())
    }

    #[pyo3(signature = (pairs, background = false))]
    fn submit_many(
        &self,
        pairs: Vec<(Bound<'_, Job>, Bound<'_, PyAny>)>,
        background: bool,
    ) -> PyResult<()> {
        for (job, future) in pairs {
            self.submit(&job, future, background)?;
        }
        Ok(())
    }

    #[pyo3(signature = (limit = 256))]
    fn drain(&self, py: Python<'_>, limit: usize) -> PyResult<usize> {
        let mut count = 0u64;
        unsafe { libc::read(self.shared.event_fd, (&raw mut count).cast(), 8) };
        let tasks = {
            let mut done = lock(&self.shared.done);
            if done.len() <= limit {
                std::mem::take(&mut *done)
            } else {
                let rest = done.split_off(limit);
                self.shared.signal();
                std::mem::replace(&mut *done, rest)
            }
        };
        let drained = tasks.len();
        self.pending.fetch_sub(drained, Ordering::Relaxed);
        let mut first_error = None;
        for Task { work, future } in tasks {
            // Also for a cancelled future: this gives the buffers back.
            let outcome = work.finish(py);
            let future = future.bind(py);
            let settled = (|| -> PyResult<()> {
                if future
                    .call_method0(pyo3::intern!(py, "done"))?
                    .is_truthy()?
                {
                    return Ok(());
                }
                match outcome {
                    Ok(value) => future.call_method1(pyo3::intern!(py, "set_result"), (value,))?,
                    Err(error) => future.call_method1(
                        pyo3::intern!(py, "set_exception"),
                        (error.into_value(py),),
                    )?,
                };
                Ok(())
            })();
            if let Err(error) = settled {
                first_error.get_or_insert(error);
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => Ok(drained),
        }
    }

    fn close(&self) {
        lock(&self.shared.queues).closing = true;
        for wake in &self.shared.wake {
            wake.notify_all();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let mut queues = lock(&self.shared.queues);
            queues.closing = true;
        }
        for wake in &self.shared.wake {
            wake.notify_all();
        }
        // Attached here: what is finished can be let go; what is not keeps its buffers for ever,
        // which only an interpreter that ends without `close` and `drain` sees.
        let done = std::mem::take(&mut *lock(&self.shared.done));
        drop(done);
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Pool>()
}
