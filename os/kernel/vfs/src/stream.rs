//! One direction of a pipe or a socket pair.

use crate::{refuse, Error, Result, PIPE_CAPACITY};
use alloc::collections::VecDeque;

/// Writes up to this size go in whole or not at all (PIPE_BUF).
const ATOMIC: usize = 4096;

#[derive(Default)]
pub struct Stream {
    data: VecDeque<u8>,
    pub reader_closed: bool,
    pub writer_closed: bool,
}

impl Stream {
    pub fn new() -> Stream {
        Stream::default()
    }

    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    pub fn readable(&self) -> bool {
        !self.data.is_empty() || self.writer_closed
    }

    pub fn writable(&self) -> bool {
        self.data.len() + ATOMIC <= PIPE_CAPACITY || self.reader_closed
    }

    /// Takes bytes out; 0 is the end.
    pub fn read(&mut self, out: &mut [u8], peek: bool) -> Result<usize> {
        let taken = out.len().min(self.data.len());
        if taken == 0 && !out.is_empty() {
            return if self.writer_closed { Ok(0) } else { Err(Error::EAGAIN) };
        }
        let (a, b) = self.data.as_slices();
        let first = a.len().min(taken);
        out[..first].copy_from_slice(&a[..first]);
        out[first..taken].copy_from_slice(&b[..taken - first]);
        if !peek {
            self.data.drain(..taken);
            if self.data.is_empty() {
                self.data.shrink_to(ATOMIC); // An idle pipe holds little memory.
            }
        }
        Ok(taken)
    }

    pub fn write(&mut self, data: &[u8]) -> Result<usize> {
        refuse!(self.reader_closed, EPIPE);
        let room = PIPE_CAPACITY - self.data.len();
        refuse!(room == 0 && !data.is_empty() || data.len() <= ATOMIC && data.len() > room, EAGAIN);
        let taken = data.len().min(room);
        self.data.extend(&data[..taken]);
        Ok(taken)
    }
}
