//! Memory: frames, the kernel's heap, and the program's address space.

pub mod frames;
mod heap;
pub mod space;

use crate::arch::paging::{self, Rights};
use core::cell::{RefCell, RefMut};
use core::sync::atomic::{AtomicU64, Ordering};
pub use heap::trim;

pub const PAGE: u64 = 4096;
/// All physical memory is mapped from here on.
pub const PHYSICAL_BASE: u64 = 0xffff_8000_0000_0000;
/// Memory past this is left unused: the boot tables reach this far.
pub const MAX_MEMORY: u64 = 4 << 30;
/// Device registers are mapped from here on, never unmapped.
const DEVICE_BASE: u64 = 0xffff_c000_0000_0000;
/// Kernel stacks, each with an unmapped page below it.
const STACK_BASE: u64 = 0xffff_d000_0000_0000;
const STACK_PAGES: u64 = 8;
const STACK_SPACING: u64 = 16 * PAGE;

/// The kernel's shared state. The kernel runs on one processor and is not preempted, so the
/// borrow flag suffices; a borrow is never held over a switch of threads.
pub struct Global<T>(RefCell<T>);

// SAFETY: only one processor ever runs, with interrupts off in the kernel, and interrupt handlers
// touch no Global: no two flows of control meet here.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    pub const fn new(value: T) -> Global<T> {
        Global(RefCell::new(value))
    }

    #[track_caller]
    pub fn get(&self) -> RefMut<'_, T> {
        self.0.borrow_mut()
    }
}

/// How a page was touched.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub write: bool,
    pub execute: bool,
}

static TOP: AtomicU64 = AtomicU64::new(MAX_MEMORY);
static NEXT_DEVICE: AtomicU64 = AtomicU64::new(DEVICE_BASE);

/// Physical memory that nobody writes: boot information, ACPI tables, modules.
pub fn physical_bytes(at: u64, length: usize) -> Option<&'static [u8]> {
    let end = at.checked_add(length as u64)?;
    if at == 0 || end > TOP.load(Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the range is mapped, and its callers name ranges that stay as the loader left them.
    Some(unsafe { core::slice::from_raw_parts((PHYSICAL_BASE + at) as *const u8, length) })
}

/// The bytes of a frame that the caller owns.
pub fn frame_bytes(frame: u64) -> &'static mut [u8; PAGE as usize] {
    // SAFETY: frames come from the allocator, one owner each, and are mapped linearly.
    unsafe { &mut *((PHYSICAL_BASE + frame) as *mut [u8; PAGE as usize]) }
}

/// A page table in its frame.
pub fn page_table(frame: u64) -> &'static mut [u64; 512] {
    // SAFETY: only paging calls this, with frames that it made tables of, one at a time.
    unsafe { &mut *((PHYSICAL_BASE + frame) as *mut [u64; 512]) }
}

/// Maps a device's registers, uncached, and returns where.
pub fn map_device(physical: u64, length: u64) -> u64 {
    let (first, last) = (physical & !(PAGE - 1), (physical + length).next_multiple_of(PAGE));
    let base = NEXT_DEVICE.fetch_add(last - first + PAGE, Ordering::Relaxed);
    let rights = Rights::WRITE.with(Rights::UNCACHED, true);
    for offset in (0..last - first).step_by(PAGE as usize) {
        assert!(paging::map(base + offset, first + offset, rights), "no memory to map a device");
    }
    base + physical - first
}

/// Maps kernel stack number `slot` and returns its top; `None` without frames.
pub fn map_stack(slot: u64) -> Option<u64> {
    let top = STACK_BASE + (slot + 1) * STACK_SPACING;
    for page in 1..=STACK_PAGES {
        let mapped = frames::allocate()
            .is_some_and(|frame| paging::map(top - page * PAGE, frame, Rights::WRITE));
        if !mapped {
            unmap_stack(slot);
            return None;
        }
    }
    Some(top)
}

pub fn unmap_stack(slot: u64) {
    let top = STACK_BASE + (slot + 1) * STACK_SPACING;
    paging::update(top - STACK_PAGES * PAGE, top, &mut |_, frame, _| {
        frames::free(frame, 1);
        None
    });
}

/// Takes over memory: `ranges` and `modules` by the boot protocol, and where its information lies.
/// Called once, first thing.
pub fn init(
    ranges: &mut dyn FnMut(&mut dyn FnMut(u64, u64)),
    modules: &mut dyn FnMut(&mut dyn FnMut(u64, u64)),
    information: (u64, u64),
) {
    let mut top = 0;
    ranges(&mut |_, end| top = end.max(top).min(MAX_MEMORY));
    let mut image = (0, 0);
    modules(&mut |start, end| {
        top = top.max(end).min(MAX_MEMORY);
        if image.1 == 0 {
            image = (start, end);
        }
    });
    top = top.next_multiple_of(2 << 20);
    let (kernel_start, kernel_end) = paging::kernel_range();
    let mut keep = |each: &mut dyn FnMut(u64, u64)| {
        modules(each);
        each(information.0, information.1);
    };
    // The bitmap stands at the first place free of everything else.
    let bitmap_bytes = (top / PAGE / 8).next_multiple_of(PAGE);
    let mut place = None;
    ranges(&mut |start, end| {
        let mut at = start.max(kernel_end).next_multiple_of(PAGE);
        keep(&mut |first, last| {
            if at < last && first < at + bitmap_bytes {
                at = last.next_multiple_of(PAGE);
            }
        });
        if place.is_none() && at + bitmap_bytes <= end.min(MAX_MEMORY) {
            place = Some(at);
        }
    });
    let place = place.expect("no memory for the frame table");
    frames::init(place, top);
    ranges(&mut |start, end| frames::release(start.max(kernel_start), end.min(MAX_MEMORY)));
    frames::reserve(kernel_start, kernel_end);
    frames::reserve(place, place + bitmap_bytes);
    keep(&mut |start, end| frames::reserve(start, end));
    TOP.store(top, Ordering::Relaxed);
    paging::init(top, (image.0, image.1 & !(PAGE - 1)));
}
