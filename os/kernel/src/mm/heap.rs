//! The kernel's heap: powers of two up to half a page from lists of equal pieces, anything larger
//! in whole frames.

use super::{frames, Global, PAGE, PHYSICAL_BASE};
use core::alloc::{GlobalAlloc, Layout};

const SMALLEST: usize = 16;
const LARGEST: usize = 2048;
const CLASSES: usize = 8;

struct Heap {
    /// The first free piece of each size; each holds the address of the next.
    free: [u64; CLASSES],
}

struct Allocator(Global<Heap>);

#[global_allocator]
static HEAP: Allocator = Allocator(Global::new(Heap { free: [0; CLASSES] }));

fn class_of(layout: &Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(SMALLEST);
    (size <= LARGEST).then(|| (size.next_power_of_two() / SMALLEST).trailing_zeros() as usize)
}

// SAFETY: pieces are cut from frames that belong to the heap alone, are as large and as aligned as
// their class (at most a page), and a piece is on no list while it is handed out.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class_of(&layout) else {
            let run = frames::allocate_run(layout.size().div_ceil(PAGE as usize));
            return run.map_or(core::ptr::null_mut(), |at| (PHYSICAL_BASE + at) as *mut u8);
        };
        let mut heap = self.0.get();
        if heap.free[class] == 0 {
            let Some(frame) = frames::allocate() else { return core::ptr::null_mut() };
            let size = SMALLEST << class;
            for piece in (0..PAGE as usize / size).rev() {
                let at = PHYSICAL_BASE + frame + (piece * size) as u64;
                // SAFETY: inside the frame just taken.
                unsafe { *(at as *mut u64) = heap.free[class] };
                heap.free[class] = at;
            }
        }
        let at = heap.free[class];
        // SAFETY: a free piece holds the address of the next one.
        heap.free[class] = unsafe { *(at as *const u64) };
        at as *mut u8
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some(class) = class_of(&layout) else {
            let count = layout.size().div_ceil(PAGE as usize);
            return frames::free(pointer as u64 - PHYSICAL_BASE, count);
        };
        let mut heap = self.0.get();
        // SAFETY: the piece was handed out by `alloc` and nobody holds it any more.
        unsafe { *(pointer as *mut u64) = heap.free[class] };
        heap.free[class] = pointer as u64;
    }
}
