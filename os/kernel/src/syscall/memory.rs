//! Calls on the address space.

use super::{Answer, Args, Errno};
use crate::arch::Frame;
use crate::files::{self, Object};
use crate::mm::space::{self, Backing, Place, Protection};
use crate::mm::{frames, PAGE, PHYSICAL_BASE};
use crate::usercopy;

const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const MREMAP_MAYMOVE: u64 = 1;

fn protection(bits: u64) -> Result<Protection, Errno> {
    if bits & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    // What can be written or run can be read on this machine: say so.
    let (write, execute) = (bits & 2 != 0, bits & 4 != 0);
    Ok(Protection { read: bits & 1 != 0 || write || execute, write, execute })
}

/// Limits: PROT_EXEC only for MAP_PRIVATE of root-image files, never with PROT_WRITE; a file in
/// memory is copied when it is mapped, and not mapped MAP_SHARED for writing (ENODEV).
pub fn mmap(_: &mut Frame, &[address, length, bits, flags, fd, offset]: &Args) -> Answer {
    let protection = protection(bits)?;
    let place = match address {
        at if flags & MAP_FIXED_NOREPLACE != 0 => Place::FixedEmpty(at),
        at if flags & MAP_FIXED != 0 => Place::Fixed(at),
        0 => Place::Anywhere,
        at => Place::Hint(at & !(PAGE - 1)),
    };
    if !matches!(flags & 3, MAP_SHARED | MAP_PRIVATE) && flags & 3 != 3 {
        return Err(Errno::EINVAL);
    }
    if flags & MAP_ANONYMOUS != 0 {
        // Text comes from the root image only. With one process, shared and private are the same.
        if protection.execute {
            return Err(Errno::EACCES);
        }
        return space::map(place, length, protection, Backing::Anonymous);
    }
    let file = files::get(fd)?;
    let Object::File(node) = file.object else { return Err(Errno::ENODEV) };
    let shared = flags & 3 != MAP_PRIVATE;
    if !file.may_read() || (shared && protection.write && !file.may_write()) {
        return Err(Errno::EACCES);
    }
    if offset % PAGE != 0 || length == 0 {
        return Err(Errno::EINVAL);
    }
    if let Some(data) = files::with_tree(|tree| Ok(tree.image_data(node)))? {
        if shared && protection.execute {
            return Err(Errno::EACCES);
        }
        let start = data.as_ptr() as u64 - PHYSICAL_BASE;
        let end = start + (data.len() as u64).next_multiple_of(PAGE);
        let at = start.checked_add(offset).ok_or(Errno::EINVAL)?;
        return space::map(place, length, protection, Backing::Image { at, end });
    }
    if protection.execute {
        return Err(Errno::EACCES);
    }
    if shared && protection.write {
        return Err(Errno::ENODEV);
    }
    // A file in memory is copied now: a later page fault must not depend on the file tree.
    let size = files::with_tree(|tree| tree.stat(node))?.size;
    let wanted = length.min(size.saturating_sub(offset));
    if wanted / PAGE > frames::available() as u64 {
        return Err(Errno::ENOMEM);
    }
    let at = space::map(place, length, Protection::READ_WRITE, Backing::Anonymous)?;
    let mut buffer = [0; PAGE as usize];
    let mut done = 0;
    while done < wanted {
        let count = files::with_tree(|tree| tree.read_at(node, offset + done, &mut buffer))?;
        if count == 0 {
            break;
        }
        let count = (count as u64).min(wanted - done);
        usercopy::write(at + done, &buffer[..count as usize])?;
        done += count;
    }
    space::protect(at, length, protection)?;
    Ok(at)
}

/// Limits: never adds PROT_EXEC, and never allows writing and execution together (EACCES).
pub fn mprotect(_: &mut Frame, &[start, length, bits, ..]: &Args) -> Answer {
    space::protect(start, length, protection(bits)?).map(|()| 0)
}

pub fn munmap(_: &mut Frame, &[start, length, ..]: &Args) -> Answer {
    space::unmap(start, length).map(|()| 0)
}

/// Limits: no MREMAP_FIXED; anonymous memory only.
pub fn mremap(_: &mut Frame, &[old, old_length, new_length, flags, ..]: &Args) -> Answer {
    if flags & !MREMAP_MAYMOVE != 0 {
        return Err(Errno::EINVAL);
    }
    space::remap(old, old_length, new_length, flags & MREMAP_MAYMOVE != 0)
}

/// Limits: MADV_DONTNEED and MADV_FREE drop pages; other advice changes nothing.
pub fn madvise(_: &mut Frame, &[start, length, advice, ..]: &Args) -> Answer {
    match advice {
        _ if length == 0 => Ok(0),
        4 | 8 => space::discard(start, length).map(|()| 0),
        0..=3 | 10..=21 if start % PAGE != 0 => Err(Errno::EINVAL),
        0..=3 | 10..=21 if space::is_mapped(start, length) => Ok(0),
        0..=3 | 10..=21 => Err(Errno::ENOMEM),
        _ => Err(Errno::EINVAL),
    }
}

pub fn brk(_: &mut Frame, &[wanted, ..]: &Args) -> Answer {
    Ok(space::set_break(wanted))
}
