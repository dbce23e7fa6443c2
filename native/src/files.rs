//! File jobs: one system call or a short loop of them each.
use crate::aligned::ALIGN_BYTES;
use crate::buffers::{detached, NewBytes, ReadBuf, WriteBuf};
use crate::jobs::{Job, Lane, PureJob};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use std::ffi::{CString, OsString};
use std::io::Error;
use std::net::ToSocketAddrs;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The kernel's own limit of buffers in one call (UIO_MAXIOV).
const IOV_MAX: usize = 1024;

/// Zeros are written in pieces of this size.
const ZERO_BYTES: usize = 1024 * 1024;

/// A pipe that is writable takes this much without blocking (POSIX, PIPE_BUF).
const PIPE_BYTES: usize = 4096;

/// A reader of the log that stalls for longer loses lines rather than hold up the end of the
/// process.
const LOG_STALL_MS: i32 = 5_000;

#[repr(C, align(4096))]
struct Zeros([u8; ZERO_BYTES]);
static ZEROS: Zeros = Zeros([0; ZERO_BYTES]);
const _: () = assert!(std::mem::align_of::<Zeros>() == ALIGN_BYTES);

/// An open file, closed when neither Python nor a job holds it: a number that a job still uses is
/// never given to another file, and an open whose waiter was cancelled does not leak.
#[pyclass(frozen, module = "o3storage._native")]
pub struct FileHandle {
    fd: Mutex<Option<Arc<OwnedFd>>>,
}

impl FileHandle {
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd: Mutex::new(Some(Arc::new(fd))),
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<OwnedFd>>> {
        match self.fd.lock() {
            Ok(slot) => slot,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

#[pymethods]
impl FileHandle {
    /// Closes once the jobs that use the file are done. Does nothing the second time.
    fn close_job(&self) -> Job {
        let mut fd = self.slot().take();
        job(Lane::File, Lent::default(), None, move |_| {
            if let Some(fd) = fd.take().and_then(Arc::into_inner) {
                // Never twice: after an error the number may belong to another file already.
                check(unsafe { libc::close(fd.into_raw_fd()) })?;
            }
            Ok(Outcome::Nothing)
        })
    }

    #[getter]
    fn closed(&self) -> bool {
        self.slot().is_none()
    }

    fn fileno(&self) -> PyResult<i32> {
        match &*self.slot() {
            Some(fd) => Ok(fd.as_raw_fd()),
            None => Err(PyValueError::new_err("the file is closed")),
        }
    }
}

/// A descriptor, kept open while the job that holds this exists.
pub struct Fd {
    number: i32,
    _keep: Option<Arc<OwnedFd>>,
}

impl Fd {
    /// A method rather than the field, which alone a closure would capture: it is `_keep` that has
    /// to move into the job.
    pub fn number(&self) -> i32 {
        self.number
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Fd {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(handle) = object.cast::<FileHandle>() {
            return match &*handle.get().slot() {
                Some(fd) => Ok(Self {
                    number: fd.as_raw_fd(),
                    _keep: Some(Arc::clone(fd)),
                }),
                None => Err(PyValueError::new_err("the file is closed")),
            };
        }
        Ok(Self {
            number: object.extract()?,
            _keep: None,
        })
    }
}

pub enum Outcome {
    Nothing,
    File(OwnedFd),
    Number(i64),
    Pair(u64, u64),
    /// So many bytes of the new object were filled.
    Filled(usize),
    Names(Vec<OsString>),
    Addresses(Vec<(i32, String, u16)>),
}

type Operation = Box<dyn FnMut(&mut Lent) -> Result<Outcome, Error> + Send>;

/// What a job borrows from Python.
#[derive(Default)]
pub struct Lent {
    read: Vec<ReadBuf>,
    write: Option<WriteBuf>,
    new: Option<NewBytes>,
}

struct FileJob {
    operation: Operation,
    lent: Lent,
    /// Shown in errors.
    path: Option<PathBuf>,
    outcome: Result<Outcome, Error>,
}

impl PureJob for FileJob {
    fn work(&mut self) {
        self.outcome = (self.operation)(&mut self.lent);
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let object = match self
            .outcome
            .map_err(|e| os_error(&e, self.path.as_deref()))?
        {
            Outcome::Nothing => py.None(),
            Outcome::File(fd) => Bound::new(py, FileHandle::new(fd))?.into_any().unbind(),
            Outcome::Number(number) => number.into_pyobject(py)?.into_any().unbind(),
            Outcome::Pair(a, b) => (a, b).into_pyobject(py)?.into_any().unbind(),
            Outcome::Filled(size) => match self.lent.new {
                Some(bytes) => bytes.into_bytes(py, size),
                None => size.into_pyobject(py)?.into_any().unbind(),
            },
            Outcome::Names(names) => names.into_pyobject(py)?.into_any().unbind(),
            Outcome::Addresses(list) => list.into_pyobject(py)?.into_any().unbind(),
        };
        Ok(object)
    }
}

pub fn os_error(error: &Error, path: Option<&Path>) -> PyErr {
    match (error.raw_os_error(), path) {
        (Some(code), Some(path)) => {
            PyOSError::new_err((code, message(code), path.as_os_str().to_os_string()))
        }
        (Some(code), None) => PyOSError::new_err((code, message(code))),
        (None, _) => PyOSError::new_err(error.to_string()),
    }
}

/// The system's text for an error, without Rust's "(os error N)".
fn message(code: i32) -> String {
    let text = Error::from_raw_os_error(code).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn job(
    lane: Lane,
    lent: Lent,
    path: Option<PathBuf>,
    operation: impl FnMut(&mut Lent) -> Result<Outcome, Error> + Send + 'static,
) -> Job {
    Job::on_lane(
        FileJob {
            operation: Box::new(operation),
            lent,
            path,
            outcome: Ok(Outcome::Nothing),
        },
        lane,
    )
}

fn c_path(path: &Path) -> PyResult<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| PyValueError::new_err("a path cannot hold a NUL byte"))
}

pub fn check(result: libc::c_int) -> Result<libc::c_int, Error> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn checked_size(result: libc::ssize_t) -> Result<usize, Error> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

fn interrupted(error: &Error) -> bool {
    error.kind() == std::io::ErrorKind::Interrupted
}

/// `operation` again while a signal interrupts it. Never for fdatasync, whose second try may lie.
pub fn again<T>(mut operation: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    loop {
        match operation() {
            Err(error) if interrupted(&error) => {}
            result => return result,
        }
    }
}

fn read_full(fd: i32, out: &mut [u8], offset: i64) -> Result<usize, Error> {
    let mut filled = 0;
    while filled < out.len() {
        let rest = &mut out[filled..];
        let position = offset + filled as i64;
        let got = again(|| {
            checked_size(unsafe { libc::pread(fd, rest.as_mut_ptr().cast(), rest.len(), position) })
        })?;
        if got == 0 {
            break;
        }
        filled += got;
    }
    Ok(filled)
}

fn write_full(fd: i32, data: &[u8], offset: i64) -> Result<(), Error> {
    write_vectors(fd, &[data], offset)
}

/// All slices one after the other from `offset`, in as few calls as the kernel allows.
fn write_vectors(fd: i32, slices: &[&[u8]], mut offset: i64) -> Result<(), Error> {
    let mut vectors: Vec<libc::iovec> = slices
        .iter()
        .filter(|slice| !slice.is_empty())
        .map(|slice| libc::iovec {
            iov_base: slice.as_ptr().cast_mut().cast(),
            iov_len: slice.len(),
        })
        .collect();
    let mut first = 0;
    while first < vectors.len() {
        let count = (vectors.len() - first).min(IOV_MAX);
        let mut written = again(|| {
            checked_size(unsafe {
                libc::pwritev(fd, vectors[first..].as_ptr(), count as i32, offset)
            })
        })?;
        if written == 0 {
            return Err(Error::from_raw_os_error(libc::EIO));
        }
        offset += written as i64;
        while first < vectors.len() && written >= vectors[first].iov_len {
            written -= vectors[first].iov_len;
            first += 1;
        }
        if written > 0 {
            let vector = &mut vectors[first];
            vector.iov_base = unsafe { vector.iov_base.cast::<u8>().add(written).cast() };
            vector.iov_len -= written;
        }
    }
    Ok(())
}

fn sync_data(fd: i32) -> Result<(), Error> {
    check(unsafe { libc::fdatasync(fd) }).map(drop)
}

#[pyfunction]
fn pread_nowait(py: Python<'_>, fd: Fd, size: usize, offset: i64) -> PyResult<Option<Py<PyAny>>> {
    let mut new = NewBytes::new(py, size)?;
    let out = new.as_mut_slice();
    let filled = detached(py, size, || {
        let mut filled = 0;
        while filled < out.len() {
            let rest = &mut out[filled..];
            let vector = libc::iovec {
                iov_base: rest.as_mut_ptr().cast(),
                iov_len: rest.len(),
            };
            let position = offset + filled as i64;
            let got = unsafe { libc::preadv2(fd.number(), &vector, 1, position, libc::RWF_NOWAIT) };
            match got {
                // End of file.
                0 => break,
                // Not cached, or not supported here: the pool reads it and reports any error.
                ..0 => return None,
                _ => filled += got as usize,
            }
        }
        Some(filled)
    });
    Ok(filled.map(|filled| new.into_bytes(py, filled)))
}

#[pyfunction]
#[pyo3(signature = (path, flags, mode = 0o600))]
fn open_job(path: PathBuf, flags: i32, mode: u32) -> PyResult<Job> {
    let c = c_path(&path)?;
    let operation = move |_: &mut Lent| {
        let fd = again(|| check(unsafe { libc::open(c.as_ptr(), flags | libc::O_CLOEXEC, mode) }))?;
        Ok(Outcome::File(unsafe { OwnedFd::from_raw_fd(fd) }))
    };
    Ok(job(Lane::File, Lent::default(), Some(path), operation))
}

#[pyfunction]
fn pread_job(py: Python<'_>, fd: Fd, size: usize, offset: i64) -> PyResult<Job> {
    let lent = Lent {
        new: Some(NewBytes::new(py, size)?),
        ..Lent::default()
    };
    Ok(job(Lane::File, lent, None, move |lent| {
        let out = lent
            .new
            .as_mut()
            .map_or(&mut [][..], NewBytes::as_mut_slice);
        Ok(Outcome::Filled(read_full(fd.number(), out, offset)?))
    }))
}

#[pyfunction]
fn pread_into_job(fd: Fd, out: WriteBuf, offset: i64) -> Job {
    let lent = Lent {
        write: Some(out),
        ..Lent::default()
    };
    job(Lane::File, lent, None, move |lent| {
        let out = lent
            .write
            .as_mut()
            .map_or(&mut [][..], WriteBuf::as_mut_slice);
        Ok(Outcome::Filled(read_full(fd.number(), out, offset)?))
    })
}

#[pyfunction]
#[pyo3(signature = (fd, buffers, offset, sync = false))]
fn pwritev_job(fd: Fd, buffers: Vec<ReadBuf>, offset: i64, sync: bool) -> Job {
    let lent = Lent {
        read: buffers,
        ..Lent::default()
    };
    job(Lane::File, lent, None, move |lent| {
        let slices: Vec<&[u8]> = lent.read.iter().map(ReadBuf::as_slice).collect();
        write_vectors(fd.number(), &slices, offset)?;
        if sync {
            sync_data(fd.number())?;
        }
        Ok(Outcome::Nothing)
    })
}

#[pyfunction]
fn fdatasync_job(fd: Fd) -> Job {
    job(Lane::File, Lent::default(), None, move |_| {
        sync_data(fd.number())?;
        Ok(Outcome::Nothing)
    })
}

#[pyfunction]
fn allocate_job(fd: Fd, offset: i64, size: i64, zero_fill: bool) -> PyResult<Job> {
    if offset < 0 || size < 0 {
        return Err(PyValueError::new_err("offset and size are not negative"));
    }
    Ok(job(Lane::File, Lent::default(), None, move |_| {
        if size == 0 {
            return Ok(Outcome::Nothing);
        }
        let reserved = again(|| check(unsafe { libc::fallocate(fd.number(), 0, offset, size) }));
        let must_fill = match reserved {
            Ok(_) => zero_fill,
            // A file system without fallocate: only written zeros reserve space there.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => true,
            Err(error) => return Err(error),
        };
        if must_fill {
            let mut position = offset;
            while position < offset + size {
                let piece = (offset + size - position).min(ZERO_BYTES as i64);
                write_full(fd.number(), &ZEROS.0[..piece as usize], position)?;
                position += piece;
            }
        }
        Ok(Outcome::Nothing)
    }))
}

#[pyfunction]
fn truncate_job(fd: Fd, size: i64) -> Job {
    job(Lane::File, Lent::default(), None, move |_| {
        again(|| check(unsafe { libc::ftruncate(fd.number(), size) }))?;
        Ok(Outcome::Nothing)
    })
}

#[pyfunction]
fn rename_job(source: PathBuf, target: PathBuf) -> Job {
    let (from, to) = (source.clone(), target);
    job(Lane::File, Lent::default(), Some(source), move |_| {
        std::fs::rename(&from, &to)?;
        Ok(Outcome::Nothing)
    })
}

#[pyfunction]
fn unlink_job(path: PathBuf) -> Job {
    let name = path.clone();
    job(Lane::File, Lent::default(), Some(path), move |_| {
        std::fs::remove_file(&name)?;
        Ok(Outcome::Nothing)
    })
}

#[pyfunction]
#[pyo3(signature = (path, mode = 0o700))]
fn make_dir_job(path: PathBuf, mode: u32) -> Job {
    let name = path.clone();
    job(Lane::File, Lent::default(), Some(path), move |_| {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&name)?;
        Ok(Outcome::Nothing)
    })
}

#[pyfunction]
fn list_dir_job(path: PathBuf) -> Job {
    let name = path.clone();
    job(Lane::File, Lent::default(), Some(path), move |_| {
        let mut names = std::fs::read_dir(&name)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<Vec<_>, _>>()?;
        names.sort();
        Ok(Outcome::Names(names))
    })
}

#[pyfunction]
fn sync_dir_job(path: PathBuf) -> PyResult<Job> {
    let c = c_path(&path)?;
    let operation = move |_: &mut Lent| {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let raw = again(|| check(unsafe { libc::open(c.as_ptr(), flags) }))?;
        let directory = unsafe { OwnedFd::from_raw_fd(raw) };
        check(unsafe { libc::fsync(raw) })?;
        drop(directory);
        Ok(Outcome::Nothing)
    };
    Ok(job(Lane::File, Lent::default(), Some(path), operation))
}

#[pyfunction]
fn stat_size_job(fd: Fd) -> Job {
    job(Lane::File, Lent::default(), None, move |_| {
        let mut stat = unsafe { std::mem::zeroed::<libc::stat>() };
        check(unsafe { libc::fstat(fd.number(), &mut stat) })?;
        Ok(Outcome::Number(stat.st_size))
    })
}

#[pyfunction]
fn statfs_job(path: PathBuf) -> PyResult<Job> {
    let c = c_path(&path)?;
    let operation = move |_: &mut Lent| {
        let mut space = unsafe { std::mem::zeroed::<libc::statvfs>() };
        again(|| check(unsafe { libc::statvfs(c.as_ptr(), &mut space) }))?;
        let unit = space.f_frsize;
        Ok(Outcome::Pair(space.f_blocks * unit, space.f_bavail * unit))
    };
    Ok(job(Lane::File, Lent::default(), Some(path), operation))
}

#[pyfunction]
fn lookup_job(host: String, port: u16) -> Job {
    job(Lane::Slow, Lent::default(), None, move |_| {
        let addresses = (host.as_str(), port).to_socket_addrs().map_err(|error| {
            Error::new(error.kind(), format!("cannot resolve {host:?}: {error}"))
        })?;
        let list = addresses
            .map(|address| {
                let family = if address.is_ipv4() {
                    libc::AF_INET
                } else {
                    libc::AF_INET6
                };
                (family, address.ip().to_string(), address.port())
            })
            .collect();
        Ok(Outcome::Addresses(list))
    })
}

#[pyfunction]
fn log_job(fd: Fd, data: ReadBuf) -> Job {
    let lent = Lent {
        read: vec![data],
        ..Lent::default()
    };
    job(Lane::Log, lent, None, move |lent| {
        for data in &lent.read {
            let mut rest = data.as_slice();
            while !rest.is_empty() {
                wait_writable(fd.number(), LOG_STALL_MS)?;
                let piece = &rest[..rest.len().min(PIPE_BYTES)];
                let wrote = again(|| {
                    checked_size(unsafe {
                        libc::write(fd.number(), piece.as_ptr().cast(), piece.len())
                    })
                });
                match wrote {
                    Ok(size) => rest = &rest[size..],
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Outcome::Nothing)
    })
}

/// `TimedOut` if nobody reads for so long.
fn wait_writable(fd: i32, timeout_ms: i32) -> Result<(), Error> {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // An error state counts as ready: the write that follows reports it.
    match again(|| check(unsafe { libc::poll(&mut poll, 1, timeout_ms) }))? {
        0 => Err(Error::from_raw_os_error(libc::ETIMEDOUT)),
        _ => Ok(()),
    }
}

#[pyfunction]
fn lock_file(path: PathBuf) -> PyResult<(i32, i32)> {
    let c = c_path(&path)?;
    let failed = |error: Error| os_error(&error, Some(&path));
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let raw = again(|| check(unsafe { libc::open(c.as_ptr(), flags, 0o600) })).map_err(failed)?;
    let file = unsafe { OwnedFd::from_raw_fd(raw) };
    if let Err(error) = check(unsafe { libc::flock(raw, libc::LOCK_EX | libc::LOCK_NB) }) {
        if error.kind() != std::io::ErrorKind::WouldBlock {
            return Err(failed(error));
        }
        let mut text = [0; 16];
        let size = read_full(raw, &mut text, 0).map_err(failed)?;
        let holder = std::str::from_utf8(&text[..size])
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        return Ok((-1, holder));
    }
    check(unsafe { libc::ftruncate(raw, 0) }).map_err(failed)?;
    write_full(raw, format!("{}\n", std::process::id()).as_bytes(), 0).map_err(failed)?;
    Ok((file.into_raw_fd(), 0))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(pread_nowait, m)?)?;
    m.add_function(wrap_pyfunction!(open_job, m)?)?;
    m.add_class::<FileHandle>()?;
    m.add_function(wrap_pyfunction!(pread_job, m)?)?;
    m.add_function(wrap_pyfunction!(pread_into_job, m)?)?;
    m.add_function(wrap_pyfunction!(pwritev_job, m)?)?;
    m.add_function(wrap_pyfunction!(fdatasync_job, m)?)?;
    m.add_function(wrap_pyfunction!(allocate_job, m)?)?;
    m.add_function(wrap_pyfunction!(truncate_job, m)?)?;
    m.add_function(wrap_pyfunction!(rename_job, m)?)?;
    m.add_function(wrap_pyfunction!(unlink_job, m)?)?;
    m.add_function(wrap_pyfunction!(make_dir_job, m)?)?;
    m.add_function(wrap_pyfunction!(list_dir_job, m)?)?;
    m.add_function(wrap_pyfunction!(sync_dir_job, m)?)?;
    m.add_function(wrap_pyfunction!(stat_size_job, m)?)?;
    m.add_function(wrap_pyfunction!(statfs_job, m)?)?;
    m.add_function(wrap_pyfunction!(lookup_job, m)?)?;
    m.add_function(wrap_pyfunction!(log_job, m)?)?;
    m.add_function(wrap_pyfunction!(lock_file, m)?)
}
