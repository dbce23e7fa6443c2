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
    /// Frames that it holds, whole ones and those cut into pieces.
    frames: usize,
}

struct Allocator(Global<Heap>);

#[global_allocator]
static HEAP: Allocator = Allocator(Global::new(Heap { free: [0; CLASSES], frames: 0 }));

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
            let count = layout.size().div_ceil(PAGE as usize);
            let Some(run) = frames::allocate_run(count) else { return core::ptr::null_mut() };
            self.0.get().frames += count;
            return (PHYSICAL_BASE + run) as *mut u8;
        };
        let mut heap = self.0.get();
        if heap.free[class] == 0 {
            let Some(frame) = frames::allocate() else { return core::ptr::null_mut() };
            heap.frames += 1;
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
            self.0.get().frames -= count;
            return frames::free(pointer as u64 - PHYSICAL_BASE, count);
        };
        let mut heap = self.0.get();
        // SAFETY: the piece was handed out by `alloc` and nobody holds it any more.
        unsafe { *(pointer as *mut u64) = heap.free[class] };
        heap.free[class] = pointer as u64;
    }
}

impl Heap {
    /// Gives back the frames of which every piece is free; `pieces` has a nought for each frame.
    fn give_back(&mut self, pieces: &mut [u16]) {
        const GIVEN: u16 = u16::MAX;
        let frame_of = |piece: u64| ((piece - PHYSICAL_BASE) / PAGE) as usize;
        for class in 0..CLASSES {
            let mut at = self.free[class];
            while at != 0 {
                pieces[frame_of(at)] += 1;
                at = next(at);
            }
            at = core::mem::take(&mut self.free[class]);
            while at != 0 {
                let (piece, count) = (at, &mut pieces[frame_of(at)]);
                at = next(piece);
                if usize::from(*count) == PAGE as usize / (SMALLEST << class) {
                    *count = GIVEN;
                    self.frames -= 1;
                    frames::free((piece - PHYSICAL_BASE) & !(PAGE - 1), 1);
                } else if *count != GIVEN {
                    // SAFETY: the piece was on the list, and is put back on it.
                    unsafe { *(piece as *mut u64) = self.free[class] };
                    self.free[class] = piece;
                }
            }
        }
    }
}

/// Gives back what the heap does not need; answers how many frames it holds still.
pub fn trim() -> usize {
    let mut pieces: Vec<u16> = Vec::new();
    if pieces.try_reserve_exact(frames::span()).is_ok() {
        pieces.resize(frames::span(), 0);
        HEAP.0.get().give_back(&mut pieces);
    }
    drop(pieces);
    HEAP.0.get().frames
}
