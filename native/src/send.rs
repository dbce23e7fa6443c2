//! Frames of a body from the page cache to a socket in one job: read, check, unseal, send, while
//! they are in one core's cache.
use crate::aead::{frame_nonce, ChaChaKey, TAG_BYTES};
use crate::buffers::ReadBuf;
use crate::files::{again, check, os_error, Fd, FileHandle};
use crate::jobs::{Job, PureJob};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring::aead::{Aad, LessSafeKey, Nonce};
use std::cell::RefCell;
use std::io::Error;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

const HASH_BYTES: usize = 32;

/// A record larger than this is no frame's (256 KiB and its header): a bound of each thread's memory.
const RECORD_BYTES_MAX: usize = 1024 * 1024;

/// A job holds its thread for about a millisecond with four; no caller needs more.
const FRAMES_MAX: usize = 16;

thread_local! {
    static RECORD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Frame {
    nonce: [u8; 12],
    aad: ReadBuf,
    offset: i64,
    record_bytes: usize,
    low: usize,
    high: usize,
}

struct SendJob {
    key: Arc<LessSafeKey>,
    file: Fd,
    socket: Fd,
    frames: Vec<Frame>,
    prefix_bytes: usize,
    taken: usize,
    rest: Vec<u8>,
    error: Option<Error>,
}

impl SendJob {
    fn send_frames(&mut self, memory: &mut Vec<u8>) -> Result<(), Error> {
        for frame in &self.frames {
            if memory.len() < frame.record_bytes {
                memory.resize(frame.record_bytes, 0);
            }
            let record = &mut memory[..frame.record_bytes];
            if !read_cached(self.file.number(), record, frame.offset) {
                return Ok(());
            }
            let Some(plain) = open_record(&self.key, frame, self.prefix_bytes, record) else {
                return Ok(());
            };
            let wanted = &plain[frame.low..frame.high];
            let sent = send_now(self.socket.number(), wanted)?;
            self.taken += wanted.len();
            if sent < wanted.len() {
                self.rest = wanted[sent..].to_vec();
                return Ok(());
            }
        }
        Ok(())
    }
}

impl PureJob for SendJob {
    fn work(&mut self) {
        let done = RECORD.with_borrow_mut(|memory| self.send_frames(memory));
        self.error = done.err();
    }

    fn finish(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if let Some(error) = &self.error {
            return Err(os_error(error, None));
        }
        let rest = PyBytes::new(py, &self.rest);
        Ok((self.taken, rest).into_pyobject(py)?.into_any().unbind())
    }
}

/// All of `out` if the page cache has it now. Any error is for another reader to find and report.
fn read_cached(fd: i32, out: &mut [u8], offset: i64) -> bool {
    let mut filled = 0;
    while filled < out.len() {
        let rest = &mut out[filled..];
        let vector = libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        };
        let position = offset + filled as i64;
        let got = unsafe { libc::preadv2(fd, &vector, 1, position, libc::RWF_NOWAIT) };
        if got <= 0 {
            return false;
        }
        filled += got as usize;
    }
    true
}

/// The plaintext, in place; None unless BLAKE3 and seal both hold.
fn open_record<'a>(
    key: &LessSafeKey,
    frame: &Frame,
    prefix_bytes: usize,
    record: &'a mut [u8],
) -> Option<&'a [u8]> {
    let (hash, rest) = record.split_at_mut(HASH_BYTES);
    if blake3::hash(rest).as_bytes() != &*hash {
        return None;
    }
    let nonce = Nonce::assume_unique_for_key(frame.nonce);
    let sealed = &mut rest[prefix_bytes - HASH_BYTES..];
    key.open_in_place(nonce, Aad::from(frame.aad.as_slice()), sealed)
        .ok()
        .map(|plain| &*plain)
}

/// As many bytes as the socket has room for.
fn send_now(fd: i32, data: &[u8]) -> Result<usize, Error> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let mut sent = 0;
    while sent < data.len() {
        let rest = &data[sent..];
        let result = again(|| {
            usize::try_from(unsafe { libc::send(fd, rest.as_ptr().cast(), rest.len(), flags) })
                .map_err(|_| Error::last_os_error())
        });
        match result {
            Ok(count) => sent += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// A second descriptor of a socket: it stays that socket's whoever closes the first one.
#[pyfunction]
fn dup_socket(fd: i32) -> PyResult<FileHandle> {
    let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })
        .map_err(|error| os_error(&error, None))?;
    Ok(FileHandle::new(unsafe { OwnedFd::from_raw_fd(copy) }))
}

/// (nonce, aad, offset, record bytes, first byte wanted of the plaintext, end of those)
type FrameArg = (u64, ReadBuf, i64, usize, usize, usize);

#[pyfunction]
fn send_records_job(
    key: &Bound<'_, ChaChaKey>,
    file: Fd,
    socket: Fd,
    frames: Vec<FrameArg>,
    prefix_bytes: usize,
) -> PyResult<Job> {
    if prefix_bytes < HASH_BYTES {
        return Err(PyValueError::new_err("the prefix begins with the hash"));
    }
    if frames.len() > FRAMES_MAX {
        return Err(PyValueError::new_err("too many frames for one job"));
    }
    let mut checked = Vec::with_capacity(frames.len());
    for (number, aad, offset, record_bytes, low, high) in frames {
        let plain_bytes = record_bytes.saturating_sub(prefix_bytes + TAG_BYTES);
        if record_bytes > RECORD_BYTES_MAX || low > high || high > plain_bytes {
            return Err(PyValueError::new_err("not a frame's size"));
        }
        checked.push(Frame {
            nonce: frame_nonce(number),
            aad,
            offset,
            record_bytes,
            low,
            high,
        });
    }
    Ok(Job::new(SendJob {
        key: key.get().shared_key(),
        file,
        socket,
        frames: checked,
        prefix_bytes,
        taken: 0,
        rest: Vec::new(),
        error: None,
    }))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(dup_socket, m)?)?;
    m.add_function(wrap_pyfunction!(send_records_job, m)?)
}
