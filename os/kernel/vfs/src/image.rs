//! The root image: a header, a table of entries sorted by path, the paths, and the files' bytes
//! at page boundaries, padded with zeros, so that the kernel maps them as they lie.
//!
//! Header, 32 bytes: `O3ROOT01`, then as little-endian u64 the number of entries, the offset of
//! the paths and their length. Entry, 40 bytes: u32 offset and length of the path, u32 mode (the
//! type in the upper bits as in `stat`), u32 nought, u64 offset and length of the bytes, u64
//! seconds of the last change. A link's bytes are its target.

use crate::tree::{Content, Node, Tree};
use crate::{Error, MAX_NODES, ROOT};
use alloc::string::String;

const MAGIC: &[u8] = b"O3ROOT01";
const HEADER: usize = 32;
const ENTRY: usize = 40;
const PAGE: usize = 4096;

fn word(data: &[u8], at: usize) -> Option<usize> {
    Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?) as usize)
}

fn half(data: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?) as usize)
}

impl Tree {
    /// Adds all of an image; every offset in it is checked.
    pub fn load(&mut self, image: &'static [u8]) -> Result<(), Error> {
        self.try_load(image).ok_or(Error::EINVAL)
    }

    fn try_load(&mut self, image: &'static [u8]) -> Option<()> {
        let count = word(image, 8).filter(|n| *n < MAX_NODES)?;
        let paths_at = word(image, 16)?;
        let paths = image.get(paths_at..paths_at.checked_add(word(image, 24)?)?)?;
        let table = image.get(HEADER..HEADER + count * ENTRY)?;
        if !image.starts_with(MAGIC) {
            return None;
        }
        for entry in table.chunks_exact(ENTRY) {
            let start = half(entry, 0)?;
            let path = paths.get(start..start.checked_add(half(entry, 4)?)?)?;
            let path = core::str::from_utf8(path).ok()?;
            let (mode, at, size) = (half(entry, 8)? as u32, word(entry, 16)?, word(entry, 24)?);
            let data = image.get(at..at.checked_add(size)?)?;
            let content = match mode & 0o170_000 {
                0o040_000 => Content::Directory(Default::default()),
                0o100_000 if at % PAGE == 0 => Content::Image(data),
                0o120_000 => Content::Link(String::from(core::str::from_utf8(data).ok()?)),
                _ => return None,
            };
            let (parent, name) = path.rsplit_once('/')?;
            let parent = self.lookup(ROOT, if parent.is_empty() { "/" } else { parent }, true);
            let time_ns = (word(entry, 32)? as u64).saturating_mul(1_000_000_000);
            self.insert(parent.ok()?, name, Node::new(content, mode, time_ns)).ok()?;
        }
        Some(())
    }
}
