//! Page tables: four levels, one address space, the kernel in its upper half.

use super::*;
use crate::mm::{frames, page_table, PAGE, PHYSICAL_BASE};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
/// Software bit: the frame belongs to this mapping alone and is freed with it.
const OWNED: u64 = 1 << 9;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LARGE_PAGE: u64 = 2 << 20;
pub const KERNEL_OFFSET: u64 = 0xffff_ffff_8000_0000;

/// What a mapping allows: bits of its entry, where two of them mean the opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(u64);

const OPPOSITE: u64 = PRESENT | NO_EXECUTE;
const RIGHTS: u64 = OPPOSITE | WRITE | USER | OWNED | UNCACHED;

impl Rights {
    /// The kernel's, to be read only.
    pub const READ: Rights = Rights(0);
    pub const WRITE: Rights = Rights(WRITE);
    pub const EXECUTE: Rights = Rights(NO_EXECUTE);
    pub const USER: Rights = Rights(USER);
    /// See [`OWNED`].
    pub const OWNED: Rights = Rights(OWNED);
    pub const UNCACHED: Rights = Rights(UNCACHED);
    /// Kept but not reachable: the frame of a page that nothing is allowed on (PROT_NONE).
    pub const HIDDEN: Rights = Rights(PRESENT);

    pub fn has(self, right: Rights) -> bool {
        self.0 & right.0 != 0
    }

    pub fn with(self, right: Rights, on: bool) -> Rights {
        Rights(if on { self.0 | right.0 } else { self.0 & !right.0 })
    }

    fn bits(self) -> u64 {
        self.0 ^ OPPOSITE | if self.has(Rights::USER) { 0 } else { GLOBAL }
    }

    fn of(entry: u64) -> Rights {
        Rights((entry ^ OPPOSITE) & RIGHTS)
    }
}

static ROOT: Lone<u64> = Lone(UnsafeCell::new(0));

fn root() -> u64 {
    // SAFETY: written once by `init`.
    unsafe { *ROOT.0.get() }
}

extern "C" {
    static text_start: u8;
    static rodata_start: u8;
    static data_start: u8;
    static kernel_end: u8;
}

/// The physical range that the kernel was loaded to, the way in included.
pub fn kernel_range() -> (u64, u64) {
    (0x10_0000, (&raw const kernel_end) as u64 - KERNEL_OFFSET)
}

fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * level) & 511) as usize
}

/// The table of level 0 that covers `address`; made on the way where `make` says so.
fn walk(address: u64, make: bool, stop: u32) -> Option<&'static mut [u64; 512]> {
    let mut table = page_table(root());
    for level in (stop + 1..4).rev() {
        let entry = &mut table[index(address, level)];
        if *entry & PRESENT == 0 {
            if !make {
                return None;
            }
            let frame = frames::allocate_zeroed()?;
            // The tables of the lower half are open to ring 3, those of the kernel's never.
            *entry = frame | PRESENT | WRITE | if address < USER_END { USER } else { 0 };
        } else if *entry & LARGE != 0 {
            return None;
        }
        table = page_table(*entry & ADDRESS);
    }
    Some(table)
}

/// Maps one page. False where there is no frame for a table.
#[must_use]
pub fn map(address: u64, frame: u64, rights: Rights) -> bool {
    let Some(table) = walk(address, true, 0) else { return false };
    let entry = &mut table[index(address, 0)];
    let before = *entry;
    *entry = frame | rights.bits();
    if before & PRESENT != 0 {
        flush(address);
    }
    true
}

/// The frame and the rights at `address`, hidden ones too.
pub fn lookup(address: u64) -> Option<(u64, Rights)> {
    let entry = walk(address, false, 0)?[index(address, 0)];
    (entry != 0).then(|| (entry & ADDRESS, Rights::of(entry)))
}

/// Below this many pages they are flushed one by one.
const FLUSH_ONE_BY_ONE: u64 = 32;

/// Calls `change` for every mapped page of the range; its answer takes the page's place, and
/// tables left empty are freed.
pub fn update(start: u64, end: u64, change: &mut dyn FnMut(u64, u64, Rights) -> Option<Rights>) {
    update_level(page_table(root()), 3, start, end, change);
    if end - start <= FLUSH_ONE_BY_ONE * PAGE {
        (start..end).step_by(PAGE as usize).for_each(flush);
    } else {
        load_root();
    }
}

fn update_level(
    table: &mut [u64; 512],
    level: u32,
    start: u64,
    end: u64,
    change: &mut dyn FnMut(u64, u64, Rights) -> Option<Rights>,
) {
    let size = PAGE << (9 * level);
    let mut at = start;
    while at < end {
        let next = ((at & !(size - 1)) + size).min(end);
        let entry = &mut table[index(at, level)];
        if *entry != 0 {
            let frame = *entry & ADDRESS;
            if level == 0 {
                let changed = change(at, frame, Rights::of(*entry));
                *entry = changed.map_or(0, |rights| frame | rights.bits());
            } else {
                let lower = page_table(frame);
                update_level(lower, level - 1, at, next, change);
                if lower.iter().all(|e| *e == 0) {
                    *entry = 0;
                    frames::free(frame, 1);
                }
            }
        }
        at = next;
    }
}

fn flush(address: u64) {
    // SAFETY: forgetting a translation changes no memory.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

fn load_root() {
    // SAFETY: the root maps the kernel as it runs.
    unsafe { asm!("mov cr3, {}", in(reg) root(), options(nostack)) };
}

/// Builds the final tables: the kernel's parts with their rights, and all memory below `top`
/// linearly, without execute, `read_only` (the root image) and the kernel's text without write.
pub fn init(top: u64, read_only: (u64, u64)) {
    let root_frame = frames::allocate_zeroed().expect("no memory for page tables");
    // SAFETY: nothing else runs yet.
    unsafe { *ROOT.0.get() = root_frame };
    let physical = |symbol: *const u8| symbol as u64 - KERNEL_OFFSET;
    let (text, data) = (physical(&raw const text_start), physical(&raw const data_start));
    let (rodata, end) = (physical(&raw const rodata_start), physical(&raw const kernel_end));
    let protected =
        |at: u64| (text..data).contains(&at) || (read_only.0..read_only.1).contains(&at);
    let mixed = |at: u64| {
        let overlaps = |start: u64, end: u64| at < end && start < at + LARGE_PAGE;
        overlaps(text, data) || overlaps(read_only.0, read_only.1)
    };
    for large in (0..top).step_by(LARGE_PAGE as usize) {
        if !mixed(large) {
            let table = walk(PHYSICAL_BASE + large, true, 1).expect("no memory for page tables");
            table[index(PHYSICAL_BASE + large, 1)] = large | Rights::WRITE.bits() | LARGE;
            continue;
        }
        for at in (large..large + LARGE_PAGE).step_by(PAGE as usize) {
            let rights = Rights::READ.with(Rights::WRITE, !protected(at));
            assert!(map(PHYSICAL_BASE + at, at, rights), "no memory for page tables");
        }
    }
    for at in (text..end).step_by(PAGE as usize) {
        let rights = match at {
            at if at < rodata => Rights::EXECUTE,
            at if at < data => Rights::READ,
            _ => Rights::WRITE,
        };
        assert!(map(KERNEL_OFFSET + at, at, rights), "no memory for page tables");
    }
    load_root();
}

/// What a walk over the live tables found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Audit {
    pub user_pages: usize,
    pub kernel_pages: usize,
    pub writable_and_executable: usize,
    pub kernel_open_to_user: usize,
    pub tables: usize,
}

/// Walks all tables and counts what must never be there.
pub fn audit() -> Audit {
    let mut found = Audit::default();
    audit_level(page_table(root()), 3, 0, USER | WRITE, &mut found);
    found
}

/// `rights`: USER and WRITE, which every level must grant, and NO_EXECUTE, which any can set.
fn audit_level(table: &[u64; 512], level: u32, base: u64, rights: u64, found: &mut Audit) {
    found.tables += 1;
    for (i, entry) in table.iter().enumerate().filter(|(_, e)| **e & PRESENT != 0) {
        let at = base | (i as u64) << (12 + 9 * level);
        let rights = rights & entry & (USER | WRITE) | (rights | entry) & NO_EXECUTE;
        if level > 0 && entry & LARGE == 0 {
            audit_level(page_table(entry & ADDRESS), level - 1, at, rights, found);
            continue;
        }
        let upper = at >= 1 << 47;
        found.kernel_pages += usize::from(upper);
        found.user_pages += usize::from(!upper);
        found.writable_and_executable += usize::from(rights & (WRITE | NO_EXECUTE) == WRITE);
        // The upper half closed to ring 3, and nothing of the kernel's in the lower half.
        found.kernel_open_to_user += usize::from(upper == (rights & USER != 0));
    }
}
