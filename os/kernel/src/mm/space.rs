//! The program's address space: its regions, and their pages as they are first touched.

use super::{frame_bytes, frames, physical_bytes, Access, Global, PAGE};
use crate::arch::paging::{self, Rights};
use crate::arch::USER_END;
use crate::syscall::{refuse, Errno};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Regions after which mmap answers ENOMEM: eight times what the interpreter uses under load.
const MAX_REGIONS: usize = 8192;
/// Nothing is mapped below: what a null pointer and a small offset reach.
const USER_START: u64 = 0x1_0000;

/// What is allowed: reading too, where it is more than nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    None,
    Read,
    Write,
    Execute,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Zeroed frames.
    Anonymous,
    /// Bytes of the root image, at this physical address for the region's first byte; the page
    /// at `end` and those after it are past the file.
    Image { at: u64, end: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Region {
    end: u64,
    protection: Protection,
    backing: Backing,
}

pub struct Space {
    regions: BTreeMap<u64, Region>,
    /// New mappings are placed downwards from here.
    top: u64,
    /// Where the heap starts and ends.
    heap: (u64, u64),
    /// Pages touched so far, for /proc-like figures and the limit tests.
    pub faults: u64,
}

static SPACE: Global<Space> =
    Global::new(Space { regions: BTreeMap::new(), top: USER_END, heap: (0, 0), faults: 0 });

/// Sets where mappings and the heap go: different in each boot.
pub fn init(top: u64, heap: u64) {
    let mut space = SPACE.get();
    space.top = top;
    space.heap = (heap, heap);
}

pub fn faults() -> u64 {
    SPACE.get().faults
}

fn page_end(start: u64, length: u64) -> Option<u64> {
    let end = start.checked_add(length)?.checked_next_multiple_of(PAGE)?;
    (start >= USER_START && end <= USER_END).then_some(end)
}

/// The end of a range of whole pages, or `error` where it cannot be the program's.
fn range_end(start: u64, length: u64, error: Errno) -> Result<u64, Errno> {
    refuse!(start % PAGE != 0, EINVAL);
    page_end(start, length).ok_or(error)
}

impl Space {
    fn find(&self, address: u64) -> Option<(u64, Region)> {
        let (start, region) = self.regions.range(..=address).next_back()?;
        (address < region.end).then_some((*start, *region))
    }

    fn is_free(&self, start: u64, end: u64) -> bool {
        self.regions.range(..end).next_back().is_none_or(|(_, region)| region.end <= start)
    }

    /// Whether all of a range is mapped, by regions for which `fits` holds.
    fn covers(&self, start: u64, end: u64, fits: impl Fn(&Region) -> bool) -> Result<bool, Errno> {
        let mut at = start;
        let mut all = true;
        while at < end {
            let (_, region) = self.find(at).ok_or(Errno::ENOMEM)?;
            all &= fits(&region);
            at = region.end;
        }
        Ok(all)
    }

    /// The highest gap below `top`.
    fn find_gap(&self, length: u64) -> Option<u64> {
        let mut ceiling = self.top;
        for (start, region) in self.regions.range(..self.top).rev() {
            if region.end <= ceiling && ceiling - region.end >= length {
                return Some(ceiling - length);
            }
            ceiling = ceiling.min(*start);
        }
        (ceiling >= USER_START + length).then(|| ceiling - length)
    }

    /// Cuts regions so that none crosses `at`.
    fn split(&mut self, at: u64) {
        let Some((start, region)) = self.find(at).filter(|(start, _)| *start < at) else { return };
        let mut upper = region;
        if let Backing::Image { at: physical, .. } = &mut upper.backing {
            *physical += at - start;
        }
        self.regions.insert(start, Region { end: at, ..region });
        self.regions.insert(at, upper);
    }

    fn remove(&mut self, start: u64, end: u64) {
        self.split(start);
        self.split(end);
        let inside: Vec<u64> = self.regions.range(start..end).map(|(at, _)| *at).collect();
        for at in inside {
            self.regions.remove(&at);
        }
        release_pages(start, end);
    }

    fn insert(&mut self, start: u64, region: Region) {
        // Neighbours of one kind become one region, so that the limit is not reached by growth.
        let mut start = start;
        let mut region = region;
        let joins = |a: &Region, b: &Region| {
            a.backing == Backing::Anonymous
                && b.backing == Backing::Anonymous
                && a.protection == b.protection
        };
        if let Some((before, lower)) = self.regions.range(..start).next_back() {
            if lower.end == start && joins(lower, &region) {
                start = *before;
            }
        }
        if let Some(upper) = self.regions.get(&region.end).copied() {
            if joins(&upper, &region) {
                self.regions.remove(&region.end);
                region.end = upper.end;
            }
        }
        self.regions.insert(start, region);
    }
}

fn release_pages(start: u64, end: u64) {
    paging::update(start, end, &mut |_, frame, rights| {
        if rights.has(Rights::OWNED) {
            frames::free(frame, 1);
        }
        None
    });
}

/// Where a new mapping goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Anywhere,
    /// There if it is free, else anywhere.
    Hint(u64),
    /// There, in the place of what is there.
    Fixed(u64),
    /// There, or not at all.
    FixedEmpty(u64),
}

/// Makes a region; its pages come when they are touched.
pub fn map(
    place: Place,
    length: u64,
    protection: Protection,
    backing: Backing,
) -> Result<u64, Errno> {
    let length = length.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)?;
    refuse!(length == 0, EINVAL);
    refuse!(length > USER_END, ENOMEM);
    let mut space = SPACE.get();
    refuse!(space.regions.len() + 2 > MAX_REGIONS, ENOMEM);
    let start = match place {
        Place::Fixed(at) | Place::FixedEmpty(at) => {
            let end = range_end(at, length, Errno::ENOMEM)?;
            refuse!(matches!(place, Place::FixedEmpty(_)) && !space.is_free(at, end), EEXIST);
            space.remove(at, end);
            at
        }
        Place::Hint(at) if page_end(at, length).is_some_and(|end| space.is_free(at, end)) => at,
        Place::Hint(_) | Place::Anywhere => space.find_gap(length).ok_or(Errno::ENOMEM)?,
    };
    space.insert(start, Region { end: start + length, protection, backing });
    Ok(start)
}

pub fn unmap(start: u64, length: u64) -> Result<(), Errno> {
    refuse!(start % PAGE != 0 || length == 0, EINVAL);
    let end = start.checked_add(length).and_then(|e| e.checked_next_multiple_of(PAGE));
    let end = end.filter(|end| *end <= USER_END).ok_or(Errno::EINVAL)?;
    let mut space = SPACE.get();
    refuse!(space.regions.len() + 2 > MAX_REGIONS, ENOMEM);
    space.remove(start, end);
    Ok(())
}

/// Changes what a range allows. Execution is never added: text comes from the root image only.
pub fn protect(start: u64, length: u64, protection: Protection) -> Result<(), Errno> {
    refuse!(start % PAGE != 0, EINVAL);
    if length == 0 {
        return Ok(());
    }
    let end = range_end(start, length, Errno::ENOMEM)?;
    let mut space = SPACE.get();
    refuse!(space.regions.len() + 2 > MAX_REGIONS, ENOMEM);
    let execute = protection == Protection::Execute;
    let fits = |region: &Region| !execute || region.protection == Protection::Execute;
    refuse!(!space.covers(start, end, fits)?, EACCES);
    space.split(start);
    space.split(end);
    let inside: Vec<(u64, Region)> =
        space.regions.range(start..end).map(|(at, region)| (*at, *region)).collect();
    for (at, region) in inside {
        space.regions.remove(&at);
        space.insert(at, Region { protection, ..region });
    }
    paging::update(start, end, &mut |_, _, rights| {
        // A page of the image stays read-only until a write copies it.
        let write = protection == Protection::Write && rights.has(Rights::OWNED);
        let rights = rights.with(Rights::WRITE, write).with(Rights::EXECUTE, execute);
        Some(rights.with(Rights::HIDDEN, protection == Protection::None))
    });
    Ok(())
}

/// Throws the pages of a range away: the next touch finds them new.
pub fn discard(start: u64, length: u64) -> Result<(), Errno> {
    let end = range_end(start, length, Errno::EINVAL)?;
    SPACE.get().covers(start, end, |_| true)?;
    release_pages(start, end);
    Ok(())
}

/// Whether all of a range is mapped, for the calls that only advise.
pub fn is_mapped(start: u64, length: u64) -> bool {
    page_end(start, length).is_some_and(|end| SPACE.get().covers(start, end, |_| true).is_ok())
}

/// Moves or resizes a mapping of one region.
pub fn remap(old: u64, old_length: u64, new_length: u64, may_move: bool) -> Result<u64, Errno> {
    let new_length = new_length.checked_next_multiple_of(PAGE).ok_or(Errno::EINVAL)?;
    refuse!(new_length == 0 || old_length == 0, EINVAL);
    let old_end = range_end(old, old_length, Errno::EFAULT)?;
    let old_length = old_end - old;
    if new_length <= old_length {
        if new_length < old_length {
            unmap(old + new_length, old_length - new_length)?;
        }
        return Ok(old);
    }
    let mut space = SPACE.get();
    let (_, region) = space.find(old).ok_or(Errno::EFAULT)?;
    refuse!(region.end < old_end, EFAULT);
    refuse!(new_length > USER_END || space.regions.len() + 3 > MAX_REGIONS, ENOMEM);
    // A file's mapping does not grow past what was asked for.
    refuse!(region.backing != Backing::Anonymous, EINVAL);
    if region.end == old_end
        && page_end(old, new_length).is_some_and(|end| space.is_free(old_end, end))
    {
        space.insert(old_end, Region { end: old + new_length, ..region });
        return Ok(old);
    }
    refuse!(!may_move, ENOMEM);
    let new = space.find_gap(new_length).ok_or(Errno::ENOMEM)?;
    let mut pages = Vec::new();
    paging::update(old, old_end, &mut |at, frame, rights| {
        pages.push((at - old, frame, rights));
        None
    });
    for (offset, frame, rights) in pages {
        // There are frames for tables: the program's own end above the reserve.
        assert!(paging::map(new + offset, frame, rights), "no memory for page tables");
    }
    space.remove(old, old_end);
    space.insert(new, Region { end: new + new_length, ..region });
    Ok(new)
}

/// Moves the heap's end; answers where it is.
pub fn set_break(wanted: u64) -> u64 {
    let (start, end) = SPACE.get().heap;
    if wanted < start || wanted >= USER_END {
        return end;
    }
    let (old_page, new_page) = (end.next_multiple_of(PAGE), wanted.next_multiple_of(PAGE));
    let result = if new_page < old_page {
        unmap(new_page, old_page - new_page)
    } else if new_page > old_page {
        let (place, length) = (Place::FixedEmpty(old_page), new_page - old_page);
        map(place, length, Protection::Write, Backing::Anonymous).map(|_| ())
    } else {
        Ok(())
    };
    if result.is_err() {
        return end;
    }
    SPACE.get().heap.1 = wanted;
    wanted
}

/// Serves a page fault. False where the touch is not allowed.
pub fn fault(address: u64, access: Access) -> bool {
    let page = address & !(PAGE - 1);
    let mut space = SPACE.get();
    let Some((start, region)) = space.find(address) else { return false };
    let allowed = match region.protection {
        Protection::None => false,
        Protection::Read => !access.write && !access.execute,
        Protection::Write => !access.execute,
        Protection::Execute => !access.write,
    };
    if !allowed {
        return false;
    }
    space.faults += 1;
    drop(space);
    let write = region.protection == Protection::Write;
    let execute = region.protection == Protection::Execute;
    let image = Rights::USER.with(Rights::EXECUTE, execute);
    let rights = image.with(Rights::OWNED, true).with(Rights::WRITE, write);
    if let Some((frame, now)) = paging::lookup(page) {
        let kept = if now.has(Rights::OWNED) { rights } else { image };
        // What the tables allow already cannot be served by them: some processors fault so where
        // an instruction of ring 3 reads its stack as if from ring 0.
        if now == kept && (now.has(Rights::WRITE) || !access.write) {
            return false;
        }
        if now.has(Rights::OWNED) {
            return paging::map(page, frame, kept);
        }
    }
    let source = match region.backing {
        Backing::Image { at, end } if at + (page - start) < end => Some(at + (page - start)),
        Backing::Image { .. } => return false, // Past the file's last page: Linux's SIGBUS.
        Backing::Anonymous => None,
    };
    if let Some(source) = source.filter(|_| !access.write) {
        return paging::map(page, source, image) || out_of_memory();
    }
    let Some(frame) = frames::allocate_for_user() else { out_of_memory() };
    if let Some(bytes) = source.and_then(|source| physical_bytes(source, PAGE as usize)) {
        frame_bytes(frame).copy_from_slice(bytes);
    }
    paging::map(page, frame, rights) || out_of_memory()
}

/// The named end of a program that touched more memory than there is.
fn out_of_memory() -> ! {
    crate::sched::end_program("out of memory: no frame is left for the program", 137)
}
