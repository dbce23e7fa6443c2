//! The kernel's heap: powers of two up to half a page from lists of equal pieces, anything larger
//! in whole frames.

use super::{frames, Global, PAGE, PHYSICAL_BASE};
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};

const SMALLEST: usize = 16;
const LARGEST: usize = 2048;
const CLASSES: usize = 8;

struct Heap {
    /// The first free piece of each size; each holds the address of the next.
    free: [u64; CLASSES],
    /// Frames that were cut into pieces.
    cut: usize,
}

struct Allocator(Global<Heap>);

#[global_allocator]
static HEAP: Allocator = Allocator(Global::new(Heap { free: [0; CLASSES], cut: 0 }));

/// The free piece after this one.
fn next(piece: u64) -> u64 {
    // SAFETY: called for pieces of the lists only, and each holds the address of the next one.
    unsafe { *(piece as *const u64) }
}

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
            heap.cut += 1;
            let size = SMALLEST << class;
            for piece in (0..PAGE as usize / size).rev() {
                let at = PHYSICAL_BASE + frame + (piece * size) as u64;
                // SAFETY: inside the frame just taken.
                unsafe { *(at as *mut u64) = heap.free[class] };
                heap.free[class] = at;
            }
        }
        let at = heap.free[class];
        heap.free[class] = next(at);
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

/// Gives back the frames of which every piece is free; answers how many are cut still.
pub fn trim() -> usize {
    const GIVEN: u16 = u16::MAX;
    let frame_of = |piece: u64| (piece - PHYSICAL_BASE) / PAGE;
    // How many free pieces each frame has: all of one class.
    let mut pieces: Vec<u16> = Vec::new();
    if pieces.try_reserve_exact(frames::span()).is_err() {
        return HEAP.0.get().cut;
    }
    pieces.resize(frames::span(), 0);
    let mut heap = HEAP.0.get();
    for class in 0..CLASSES {
        let list = || core::iter::successors(Some(heap.free[class]), |at| Some(next(*at)));
        list().take_while(|at| *at != 0).for_each(|at| pieces[frame_of(at) as usize] += 1);
        let mut at = core::mem::take(&mut heap.free[class]);
        while at != 0 {
            let (piece, count) = (at, &mut pieces[frame_of(at) as usize]);
            at = next(piece);
            if usize::from(*count) == PAGE as usize / (SMALLEST << class) {
                *count = GIVEN;
                heap.cut -= 1;
                frames::free(frame_of(piece) * PAGE, 1);
            } else if *count != GIVEN {
                // SAFETY: the piece was on the list, and is put back on it.
                unsafe { *(piece as *mut u64) = heap.free[class] };
                heap.free[class] = piece;
            }
        }
    }
    heap.cut
}
