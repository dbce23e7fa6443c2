//! Starts the program: its ELF file, the dynamic loader that it names, and the first stack.

use crate::arch::{Frame, ELF_MACHINE, USER_END};
use crate::mm::space::{self, Backing, Place, Protection};
use crate::mm::{PAGE, PHYSICAL_BASE};
use crate::syscall::refuse;
use crate::{files, random, sched, signal, usercopy};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The first thread's stack, what `ulimit -s` says elsewhere.
pub const STACK_SIZE: u64 = 8 << 20;
/// Bytes of arguments and environment together.
const MAX_ARGUMENTS: usize = 128 << 10;
/// Bits of randomness of a region's place, in pages: 4 GiB of choice.
const RANDOM_PAGES: u64 = 1 << 20;

struct Elf {
    entry: u64,
    headers: u64,
    header_count: u64,
    /// Where the highest segment ends.
    end: u64,
    interpreter: Option<String>,
}

fn word(data: &[u8], at: u64, size: usize) -> Result<u64, String> {
    let at = usize::try_from(at).map_err(|e| e.to_string())?;
    let bytes = at.checked_add(size).and_then(|end| data.get(at..end));
    let bytes = bytes.ok_or("the file ends too early")?;
    Ok(bytes.iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b)))
}

/// Maps the segments of an ELF file of the root image.
fn load(path: &str, base: u64) -> Result<Elf, String> {
    let node = files::tree()
        .lookup(vfs::ROOT, path, true)
        .map_err(|_| "there is no such file".to_string())?;
    let data = files::tree().image_data(node);
    let data = data.ok_or("programs run from the root image only")?;
    let machine = word(data, 18, 2)?;
    let known = data.starts_with(b"\x7fELF\x02\x01") && machine == u64::from(ELF_MACHINE);
    refuse!(!known, "not an ELF program of this machine");
    let base = match word(data, 16, 2)? {
        2 => 0,
        3 => base,
        _ => return Err("not a program".into()),
    };
    let (table, count) = (word(data, 32, 8)?, word(data, 56, 2)?);
    let mut elf = Elf {
        entry: base.wrapping_add(word(data, 24, 8)?),
        headers: 0,
        header_count: count,
        end: 0,
        interpreter: None,
    };
    let physical = data.as_ptr() as u64 - PHYSICAL_BASE;
    for i in 0..count {
        let at = table.checked_add(i * 56).ok_or("a damaged header")?;
        let (kind, flags) = (word(data, at, 4)?, word(data, at + 4, 4)?);
        let (offset, address) = (word(data, at + 8, 8)?, word(data, at + 16, 8)?);
        let (in_file, in_memory) = (word(data, at + 32, 8)?, word(data, at + 40, 8)?);
        if kind == 3 {
            let start = offset as usize;
            let bytes = start.checked_add(in_file as usize).and_then(|end| data.get(start..end));
            let text = bytes.and_then(|b| core::str::from_utf8(b).ok()).ok_or("a damaged name")?;
            elf.interpreter = Some(text.trim_end_matches('\0').into());
        }
        if kind != 1 {
            continue;
        }
        let limit =
            |value: u64| if value < USER_END { Ok(value) } else { Err("a damaged segment") };
        for value in [offset, address, in_file, in_memory] {
            limit(value)?;
        }
        refuse!(offset % PAGE != address % PAGE, "a damaged segment");
        refuse!(offset + in_file > data.len() as u64, "a damaged segment");
        let start = base + address - address % PAGE;
        let file_end = limit(base + address + in_file)?;
        let memory_end = limit(base + address + in_memory.max(in_file))?;
        if elf.headers == 0 {
            elf.headers = start - (offset - offset % PAGE) + table;
        }
        let protection = match flags & 3 {
            0 => Protection::Read,
            1 => Protection::Execute,
            2 => Protection::Write,
            _ => return Err("a segment that can be written and run".into()),
        };
        let at = physical + offset - offset % PAGE;
        let end = physical + (data.len() as u64).next_multiple_of(PAGE);
        let failed = |e: crate::syscall::Errno| alloc::format!("a segment cannot be mapped: {e:?}");
        if in_file > 0 {
            let length = file_end - start;
            let backing = Backing::Image { at, end };
            space::map(Place::Fixed(start), length, protection, backing).map_err(failed)?;
        }
        let zero_from = file_end.next_multiple_of(PAGE);
        if in_memory > in_file {
            if protection == Protection::Write && file_end < zero_from {
                let zeros = alloc::vec![0; (zero_from - file_end) as usize];
                usercopy::write(file_end, &zeros).map_err(failed)?;
            }
            if memory_end > zero_from {
                let place = Place::Fixed(zero_from);
                let length = memory_end - zero_from;
                space::map(place, length, protection, Backing::Anonymous).map_err(failed)?;
            }
        }
        elf.end = elf.end.max(memory_end);
    }
    Ok(elf)
}

fn random_pages() -> u64 {
    random::word() % RANDOM_PAGES * PAGE
}

/// Makes the program and its first thread.
pub fn start(arguments: &[String], environment: &[String]) -> Result<(), String> {
    let total: usize = arguments.iter().chain(environment).map(|text| text.len() + 9).sum();
    refuse!(total > MAX_ARGUMENTS, "the arguments and the environment are too long");
    let path = arguments.first().ok_or("no program is named")?;
    // From the top: stack, a gap, mappings downwards; programs that can be moved in the middle.
    let stack_top = USER_END - PAGE - random_pages();
    space::init(stack_top - STACK_SIZE - (1 << 30) - random_pages(), 0);
    let base = USER_END / 3 * 2 / PAGE * PAGE + random_pages();
    let program = load(path, base).map_err(|why| alloc::format!("{path}: {why}"))?;
    let heap = program.end.next_multiple_of(PAGE) + random_pages() % (1 << 30);
    space::init(stack_top - STACK_SIZE - (1 << 30) - random_pages(), heap);
    let loader_base = stack_top - STACK_SIZE - (1 << 30) - random_pages() - (64 << 20);
    let loader = match &program.interpreter {
        Some(name) => Some(load(name, loader_base).map_err(|why| alloc::format!("{name}: {why}"))?),
        None => None,
    };
    let place = Place::Fixed(stack_top - STACK_SIZE);
    space::map(place, STACK_SIZE, Protection::Write, Backing::Anonymous)
        .map_err(|e| alloc::format!("no stack: {e:?}"))?;
    let stack = build_stack(stack_top, arguments, environment, &program, loader_base)
        .ok_or("the stack cannot be written")?;
    let entry = loader.map_or(program.entry, |loader| loader.entry);
    sched::spawn(&Frame::start(entry, stack), 0, signal::ThreadSignals::default())
        .map_err(|e| alloc::format!("no first thread: {e:?}"))?;
    Ok(())
}

fn build_stack(
    top: u64,
    arguments: &[String],
    environment: &[String],
    program: &Elf,
    loader_base: u64,
) -> Option<u64> {
    let mut at = top;
    let mut push = |bytes: &[u8]| {
        at -= bytes.len() as u64;
        usercopy::write(at, bytes).ok().map(|()| at)
    };
    let mut seed = [0; 16];
    random::fill(&mut seed);
    let seed_at = push(&seed)?;
    let platform_at = push(alloc::format!("{}\0", crate::arch::MACHINE_NAME).as_bytes())?;
    let mut text = |text: &String| push(alloc::format!("{text}\0").as_bytes());
    let name_at = text(&arguments[0])?;
    let argument_at: Option<Vec<u64>> = arguments.iter().map(&mut text).collect();
    let environment_at: Option<Vec<u64>> = environment.iter().map(&mut text).collect();
    // The auxiliary vector: AT_PHDR, PHENT, PHNUM, PAGESZ, BASE, FLAGS, ENTRY, UID, EUID, GID,
    // EGID, PLATFORM, HWCAP, CLKTCK, SECURE, RANDOM, EXECFN, then AT_NULL.
    let owner = u64::from(crate::syscall::USER);
    let auxiliary = [
        (3, program.headers),
        (4, 56),
        (5, program.header_count),
        (6, PAGE),
        (7, if program.interpreter.is_some() { loader_base } else { 0 }),
        (8, 0),
        (9, program.entry),
        (11, owner),
        (12, owner),
        (13, owner),
        (14, owner),
        (15, platform_at),
        (16, 0),
        (17, 100),
        (23, 0),
        (25, seed_at),
        (31, name_at),
        (0, 0),
    ];
    let mut words = alloc::vec![arguments.len() as u64];
    words.extend(argument_at?);
    words.push(0);
    words.extend(environment_at?);
    words.push(0);
    words.extend(auxiliary.iter().flat_map(|(key, value)| [*key, *value]));
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let start = (at - bytes.len() as u64) & !15;
    usercopy::write(start, &bytes).ok()?;
    Some(start)
}
