//! Physical frames: one bit each, set where the frame is taken.

use super::{frame_bytes, Global, PAGE, PHYSICAL_BASE};

/// Frames that only the kernel may take, so that a program that uses up memory is ended by the
/// kernel and not the kernel by the program: 4 MiB, four times what its tables and buffers grow
/// by between two checks.
pub const RESERVE: usize = 1024;

struct Frames {
    bitmap: &'static mut [u64],
    free: usize,
    total: usize,
    /// Where the search for single frames goes on.
    hint: usize,
}

static FRAMES: Global<Frames> = Global::new(Frames { bitmap: &mut [], free: 0, total: 0, hint: 0 });

/// Puts the bitmap at `place`, for the frames below `top`, all taken.
pub fn init(place: u64, top: u64) {
    // SAFETY: the caller found the place free and big enough; it is mapped and never freed.
    let bitmap = unsafe {
        core::slice::from_raw_parts_mut(
            (PHYSICAL_BASE + place) as *mut u64,
            (top / PAGE / 64) as usize,
        )
    };
    bitmap.fill(u64::MAX);
    FRAMES.get().bitmap = bitmap;
}

/// Hands a range of usable memory in.
pub fn release(start: u64, end: u64) {
    let (first, last) = (start.next_multiple_of(PAGE) / PAGE, end / PAGE);
    if first < last {
        let mut frames = FRAMES.get();
        for frame in first as usize..last as usize {
            frames.set(frame, false);
        }
        frames.total = frames.free;
    }
}

/// Takes a range out again.
pub fn reserve(start: u64, end: u64) {
    let mut frames = FRAMES.get();
    for frame in (start / PAGE) as usize..end.div_ceil(PAGE) as usize {
        frames.set(frame, true);
    }
}

impl Frames {
    fn set(&mut self, frame: usize, taken: bool) {
        let bit = 1 << (frame % 64);
        let Some(word) = self.bitmap.get_mut(frame / 64) else { return };
        let was = *word & bit != 0;
        if was != taken {
            *word ^= bit;
            self.free = if taken { self.free - 1 } else { self.free + 1 };
        }
    }

    fn find_one(&mut self) -> Option<usize> {
        let words = self.bitmap.len();
        let mut places = (self.hint..words).chain(0..self.hint);
        self.hint = places.find(|at| self.bitmap[*at] != u64::MAX)?;
        Some(self.hint * 64 + self.bitmap[self.hint].trailing_ones() as usize)
    }

    fn find_run(&self, count: usize) -> Option<usize> {
        let mut run = 0;
        let mut frame = 0;
        while frame < self.bitmap.len() * 64 {
            let word = self.bitmap[frame / 64];
            if frame % 64 == 0 && word == u64::MAX {
                run = 0;
                frame += 64;
                continue;
            }
            run = if word & 1 << (frame % 64) == 0 { run + 1 } else { 0 };
            frame += 1;
            if run == count {
                return Some(frame - count);
            }
        }
        None
    }
}

/// One frame with whatever was in it.
pub fn allocate() -> Option<u64> {
    let mut frames = FRAMES.get();
    let frame = frames.find_one()?;
    frames.set(frame, true);
    Some(frame as u64 * PAGE)
}

pub fn allocate_zeroed() -> Option<u64> {
    let frame = allocate()?;
    frame_bytes(frame).fill(0);
    Some(frame)
}

/// A zeroed frame for the program: refused where it would touch the reserve, and the kernel's heap
/// has none to give back.
pub fn allocate_for_user() -> Option<u64> {
    if available() == 0 {
        super::trim();
    }
    (available() > 0).then(allocate_zeroed).flatten()
}

/// `count` frames in a row.
pub fn allocate_run(count: usize) -> Option<u64> {
    if count == 1 {
        return allocate();
    }
    let mut frames = FRAMES.get();
    let first = frames.find_run(count)?;
    (first..first + count).for_each(|frame| frames.set(frame, true));
    Some(first as u64 * PAGE)
}

pub fn free(start: u64, count: usize) {
    let mut frames = FRAMES.get();
    let first = (start / PAGE) as usize;
    for frame in first..first + count {
        assert!(frames.bitmap[frame / 64] & 1 << (frame % 64) != 0, "frame freed twice");
        frames.set(frame, false);
    }
    frames.hint = frames.hint.min(first / 64);
}

/// Frames that the program may still take.
pub fn available() -> usize {
    FRAMES.get().free.saturating_sub(RESERVE)
}

/// How many frames the table has room for.
pub fn span() -> usize {
    FRAMES.get().bitmap.len() * 64
}

/// Free and usable frames in all.
pub fn count() -> (usize, usize) {
    let frames = FRAMES.get();
    (frames.free, frames.total)
}
