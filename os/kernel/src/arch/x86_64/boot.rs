//! What the boot protocols hand over, read into one form.

use crate::mm::physical_bytes;
use alloc::string::String;
use alloc::vec::Vec;
use core::slice::ChunksExact;

/// Lists longer than this are damage.
const MAX_ENTRIES: usize = 256;
/// Bytes of PVH's start information.
const PVH_SIZE: usize = 56;
/// The command line carries an address and a log level.
const MAX_COMMAND_LINE: usize = 1024;

#[derive(Default)]
pub struct BootInfo {
    pub protocol: &'static str,
    /// Start and end of each module, in the order given.
    pub modules: Vec<(u64, u64)>,
    pub command_line: String,
    pub acpi_root: Option<u64>,
}

fn le32(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

fn le64(data: &[u8], at: usize) -> u64 {
    u64::from(le32(data, at)) | u64::from(le32(data, at + 4)) << 32
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The entries of a list of PVH's, whose address and length stand in the information at `at`.
fn pvh_list(at: u64, list: usize, count: usize, size: usize) -> Option<ChunksExact<'static, u8>> {
    let info = physical_bytes(at, PVH_SIZE)?;
    let count = (le32(info, count) as usize).min(MAX_ENTRIES);
    Some(physical_bytes(le64(info, list), count * size)?.chunks_exact(size))
}

/// Calls `each` for every usable range, before the heap is there.
pub fn each_memory_range(protocol: u32, at: u64, each: &mut dyn FnMut(u64, u64)) {
    let mut usable = |entries: ChunksExact<u8>| {
        for entry in entries.filter(|e| le32(e, 16) == 1) {
            each(le64(entry, 0), le64(entry, 0) + le64(entry, 8));
        }
    };
    if protocol == 1 {
        pvh_list(at, 40, 48, 24).map(usable);
    } else {
        each_tag(at, &mut |kind, tag| {
            if kind == 6 && tag.len() > 16 {
                usable(tag[16..].chunks_exact((le32(tag, 8) as usize).max(24)));
            }
        });
    }
}

/// Calls `each` for every range that the boot loader filled for us.
pub fn each_module(protocol: u32, at: u64, each: &mut dyn FnMut(u64, u64)) {
    if protocol == 1 {
        for entry in pvh_list(at, 16, 12, 32).into_iter().flatten() {
            each(le64(entry, 0), le64(entry, 0) + le64(entry, 8));
        }
    } else {
        each_tag(at, &mut |kind, tag| {
            if kind == 3 && tag.len() >= 16 {
                each(u64::from(le32(tag, 8)), u64::from(le32(tag, 12)));
            }
        });
    }
}

/// Where the information itself lies; it must outlive the start of memory management.
pub fn information_range(protocol: u32, at: u64) -> (u64, u64) {
    let size = match protocol {
        1 => PVH_SIZE as u64,
        _ => physical_bytes(at, 4).map_or(0, |bytes| u64::from(le32(bytes, 0))),
    };
    (at, at + size)
}

fn each_tag(at: u64, each: &mut dyn FnMut(u32, &'static [u8])) {
    let Some(total) = physical_bytes(at, 8).map(|b| le32(b, 0) as usize) else { return };
    let Some(all) = physical_bytes(at, total.min(1 << 20)) else { return };
    let mut offset = 8;
    while offset + 8 <= all.len() {
        let (kind, size) = (le32(all, offset), le32(all, offset + 4) as usize);
        if kind == 0 || size < 8 || offset + size > all.len() {
            break;
        }
        each(kind, &all[offset..offset + size]);
        offset += size.next_multiple_of(8);
    }
}

/// The whole of it, with the heap at hand.
pub fn read(protocol: u32, at: u64) -> BootInfo {
    let mut info = BootInfo::default();
    each_module(protocol, at, &mut |start, end| info.modules.push((start, end)));
    if protocol == 1 {
        info.protocol = "PVH";
        if let Some(bytes) = physical_bytes(at, PVH_SIZE) {
            info.acpi_root = Some(le64(bytes, 32)).filter(|root| *root != 0);
            let line = physical_bytes(le64(bytes, 24), MAX_COMMAND_LINE); // None at 0.
            info.command_line = line.map(text).unwrap_or_default();
        }
    } else {
        info.protocol = "Multiboot2";
        // The tag holds a copy of the root pointer; its table's address is what counts.
        each_tag(at, &mut |kind, tag| match kind {
            1 => info.command_line = text(&tag[8..tag.len().min(8 + MAX_COMMAND_LINE)]),
            14 | 15 if tag.len() >= 28 => {
                info.acpi_root = Some(tag.as_ptr() as u64 - crate::mm::PHYSICAL_BASE + 8);
            }
            _ => {}
        });
    }
    info
}
