//! Calls on the address space.

use super::*;
use crate::mm::space::{self, Backing, Place, Protection};
use crate::mm::{PAGE, PHYSICAL_BASE};

const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const MREMAP_MAYMOVE: u64 = 1;

/// What can be written or run can be read on this machine.
fn protection(bits: u64) -> Result<Protection, Errno> {
    match bits {
        0 => Ok(Protection::None),
        1 => Ok(Protection::Read),
        2 | 3 => Ok(Protection::Write),
        4 | 5 => Ok(Protection::Execute),
        6 | 7 => Err(Errno::EACCES),
        _ => Err(Errno::EINVAL),
    }
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
    refuse!(!matches!(flags & 3, MAP_SHARED | MAP_PRIVATE) && flags & 3 != 3, EINVAL);
    if flags & MAP_ANONYMOUS != 0 {
        // Text comes from the root image only. With one process, shared and private are the same.
        refuse!(protection == Protection::Execute, EACCES);
        return space::map(place, length, protection, Backing::Anonymous);
    }
    let file = files::get(fd)?;
    let Object::File(node) = file.object else { return Err(Errno::ENODEV) };
    let shared = flags & 3 != MAP_PRIVATE;
    refuse!(
        !file.may_read() || (shared && protection == Protection::Write && !file.may_write()),
        EACCES
    );
    refuse!(offset % PAGE != 0 || length == 0, EINVAL);
    let in_image = files::tree().image_data(node);
    if let Some(data) = in_image {
        refuse!(shared && protection == Protection::Execute, EACCES);
        let start = data.as_ptr() as u64 - PHYSICAL_BASE;
        let end = start + (data.len() as u64).next_multiple_of(PAGE);
        let at = start.checked_add(offset).ok_or(Errno::EINVAL)?;
        return space::map(place, length, protection, Backing::Image { at, end });
    }
    refuse!(protection == Protection::Execute, EACCES);
    refuse!(shared && protection == Protection::Write, ENODEV);
    // A file in memory is copied now: a later page fault must not depend on the file tree.
    let size = files::tree().stat(node)?.size;
    let wanted = length.min(size.saturating_sub(offset));
    refuse!(wanted / PAGE > frames::available() as u64, ENOMEM);
    let at = space::map(place, length, Protection::Write, Backing::Anonymous)?;
    let mut buffer = [0; PAGE as usize];
    let mut done = 0;
    while done < wanted {
        let count = files::tree().read_at(node, offset + done, &mut buffer)?;
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
    refuse!(flags & !MREMAP_MAYMOVE != 0, EINVAL);
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
