//! Copies between the kernel and the program. An address of the program is a plain number, checked
//! here on every use; nothing else in the kernel follows one.

use crate::arch::{self, USER_END};
use crate::syscall::{refuse, Errno};
use alloc::string::String;
use alloc::vec::Vec;

/// Whether a range could be the program's at all.
pub fn check(address: u64, length: u64) -> Result<(), Errno> {
    let end = address.checked_add(length).filter(|end| *end <= USER_END);
    end.map(|_| ()).ok_or(Errno::EFAULT)
}

pub fn read(address: u64, out: &mut [u8]) -> Result<(), Errno> {
    check(address, out.len() as u64)?;
    let done = arch::copy_user(out.as_mut_ptr(), address as *const u8, out.len());
    done.then_some(()).ok_or(Errno::EFAULT)
}

pub fn write(address: u64, data: &[u8]) -> Result<(), Errno> {
    check(address, data.len() as u64)?;
    let done = arch::copy_user(address as *mut u8, data.as_ptr(), data.len());
    done.then_some(()).ok_or(Errno::EFAULT)
}

pub fn read_u64(address: u64) -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    read(address, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

pub fn read_u32(address: u64) -> Result<u32, Errno> {
    let mut bytes = [0; 4];
    read(address, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

pub fn write_u32(address: u64, value: u32) -> Result<(), Errno> {
    write(address, &value.to_le_bytes())
}

pub fn write_u64(address: u64, value: u64) -> Result<(), Errno> {
    write(address, &value.to_le_bytes())
}

/// `count` words in a row.
pub fn read_words(address: u64, count: usize) -> Result<Vec<u64>, Errno> {
    let mut bytes = alloc::vec![0; count * 8];
    read(address, &mut bytes)?;
    let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b));
    Ok(bytes.chunks_exact(8).map(word).collect())
}

/// As many words in a row as are asked for.
pub fn read_array<const N: usize>(address: u64) -> Result<[u64; N], Errno> {
    read_words(address, N)?.try_into().map_err(|_| Errno::EFAULT)
}

pub fn write_words(address: u64, words: &[u64]) -> Result<u64, Errno> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    write(address, &bytes).map(|()| 0)
}

/// Words for which the program may have left the address out.
pub fn tell(address: u64, words: &[u64]) -> Result<u64, Errno> {
    if address == 0 {
        Ok(0)
    } else {
        write_words(address, words)
    }
}

/// A path: text up to a zero byte. Names that are not UTF-8 are not found on this system.
pub fn read_path(address: u64) -> Result<String, Errno> {
    let mut path = Vec::new();
    let mut at = address;
    loop {
        // Up to the end of the page: what follows it may not be mapped.
        let length = 256.min(4096 - at as usize % 4096);
        let start = path.len();
        path.resize(start + length, 0);
        read(at, &mut path[start..])?;
        if let Some(end) = path[start..].iter().position(|b| *b == 0) {
            path.truncate(start + end);
            return String::from_utf8(path).map_err(|_| Errno::ENOENT);
        }
        refuse!(path.len() >= vfs::MAX_PATH, ENAMETOOLONG);
        at += length as u64;
    }
}
