//! The file tree: the read-only root image and, in directories opened for it, files in memory.
//! Also the byte streams under pipes and socket pairs. No I/O and no clock: the caller brings
//! the image's bytes and the time.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod image;
mod stream;
#[cfg(test)]
#[path = "../../../tests/host/vfs.rs"]
mod tests;
mod tree;

use errno::refuse;
pub use errno::Errno as Error;
pub use stream::Stream;
pub type Result<T> = core::result::Result<T, Error>;
pub use tree::{Device, Entry, Kind, NodeId, Stat, Tree, ROOT};

/// Bytes in one name: what the interpreter's libraries assume (NAME_MAX).
pub const MAX_NAME: usize = 255;
/// Bytes in one path (PATH_MAX).
pub const MAX_PATH: usize = 4096;
/// Symbolic links followed in one lookup, so that a circle ends.
pub const MAX_LINKS: usize = 16;
/// Files, directories and links in all: the image has some two thousand.
pub const MAX_NODES: usize = 65_536;
/// Bytes of all files in memory: a quarter of the machine's 512 MB.
pub const MAX_MEMORY: u64 = 128 << 20;
/// The largest offset in a file in memory.
pub const MAX_FILE: u64 = 1 << 40;
/// Bytes waiting in a pipe or a socket pair, as on Linux.
pub const PIPE_CAPACITY: usize = 65_536;
