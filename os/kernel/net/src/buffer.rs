//! The bytes of one direction of one connection, and the share of the memory they may take.
//!
//! What is counted is the room that is held, not the bytes in it. A buffer may always hold
//! [`BUFFER_RESERVED`]; past that it grows only while all buffers together stay below
//! [`MEMORY_SHARED`]. So the sum can never pass `MEMORY_SHARED` plus the reserve of every
//! connection's two buffers, and no connection can be starved by the others.

use crate::*;
use alloc::collections::VecDeque;

/// Two segments of an Ethernet link: enough for a connection to go on, slowly.
pub const BUFFER_RESERVED: usize = 4096;
/// What the reserves leave of the whole.
pub const MEMORY_SHARED: usize = MAX_SOCKET_MEMORY - 2 * BUFFER_RESERVED * MAX_CONNECTIONS;
/// Above it empty buffers give their room back at once.
pub const MEMORY_LEAN: usize = MEMORY_SHARED / 2;

#[derive(Default)]
pub struct Buffer {
    data: VecDeque<u8>,
}

impl Buffer {
    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    pub fn capacity(&self) -> usize {
        self.data.capacity()
    }

    /// How many bytes it may come to hold while all buffers hold `memory`.
    pub fn limit(&self, largest: usize, memory: usize) -> usize {
        let share = self.data.capacity() + MEMORY_SHARED.saturating_sub(memory);
        share.min(largest).max(BUFFER_RESERVED)
    }

    /// Writes `data` at `at`, past the end too (what lies between is filled later); the caller
    /// keeps `at + data.len()` within `limit`.
    pub fn write(&mut self, at: usize, data: &[u8], limit: usize) {
        let end = at + data.len();
        if end > self.data.capacity() {
            let target = end.next_power_of_two().max(1024).min(limit.max(end));
            self.data.reserve_exact(target - self.data.len());
        }
        if at > self.data.len() {
            self.data.resize(at, 0);
        }
        let over = (self.data.len() - at).min(data.len());
        if over > 0 {
            let (a, b) = self.data.as_mut_slices();
            let first = a.len().saturating_sub(at).min(over);
            if first > 0 {
                a[at..at + first].copy_from_slice(&data[..first]);
            }
            let from = at.saturating_sub(a.len());
            b[from..from + over - first].copy_from_slice(&data[first..over]);
        }
        self.data.extend(&data[over..]);
    }

    /// The `size` bytes from `at`, in two pieces.
    pub fn slices(&self, at: usize, size: usize) -> (&[u8], &[u8]) {
        let (a, b) = self.data.as_slices();
        let first = a.len().saturating_sub(at).min(size);
        let from = at.saturating_sub(a.len()).min(b.len());
        let start = at.min(a.len());
        (&a[start..start + first], &b[from..from + size - first])
    }

    pub fn consume(&mut self, size: usize) {
        self.data.drain(..size);
    }

    pub fn truncate(&mut self, size: usize) {
        self.data.truncate(size);
    }

    /// Gives the room back where there is much of it and nothing in it.
    pub fn trim(&mut self) {
        if self.data.is_empty() && self.data.capacity() > BUFFER_RESERVED {
            self.data = VecDeque::new();
        }
    }
}
