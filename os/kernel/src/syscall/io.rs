//! Calls on descriptors of any kind: read, write, duplicate, wait.

use super::fs::length as position;
use super::*;
use alloc::boxed::Box;
use core::cell::{Cell, RefCell};
use epoll::Epoll;

/// Parts of one readv or writev (IOV_MAX).
const MAX_PARTS: u64 = 1024;
/// Descriptors of one poll: as many as there can be.
const MAX_POLL: u64 = files::MAX_DESCRIPTORS as u64;
/// Events of one epoll_wait: one for every descriptor.
const MAX_EVENTS: usize = files::MAX_DESCRIPTORS;
/// The most bytes of one call, as on Linux.
const MAX_BYTES: u64 = 0x7fff_f000;

/// Between the program and an object. Taken and put back within one step, which never waits.
static BUFFER: Global<Option<Box<[u8]>>> = Global::new(None);

fn with_buffer<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    let taken = BUFFER.get().take();
    let mut buffer = taken.unwrap_or_else(|| alloc::vec![0; files::BOUNCE].into_boxed_slice());
    let result = f(&mut buffer);
    *BUFFER.get() = Some(buffer);
    result
}

/// Address and length of each part.
pub fn parts(at: u64, count: u64) -> Result<Vec<(u64, u64)>, Errno> {
    refuse!(count > MAX_PARTS, EINVAL);
    let words = usercopy::read_words(at, count as usize * 2)?;
    let mut left = MAX_BYTES;
    let mut found = Vec::with_capacity(count as usize);
    for pair in words.chunks_exact(2) {
        refuse!(pair[1] > i64::MAX as u64, EINVAL);
        usercopy::check(pair[0], pair[1])?;
        let length = pair[1].min(left);
        left -= length;
        found.push((pair[0], length));
    }
    Ok(found)
}

/// A single part, refused as a whole where its end cannot be.
pub fn one_part(at: u64, length: u64) -> Result<[(u64, u64); 1], Errno> {
    usercopy::check(at, length)?;
    Ok([(at, length.min(MAX_BYTES))])
}

/// Reads into the parts: waits for the first bytes only, or with `all` for all of them.
pub fn read_parts(
    file: &File,
    parts: &[(u64, u64)],
    at: Option<u64>,
    nonblocking: bool,
    peek: bool,
    all: bool,
) -> Answer {
    refuse!(!file.may_read(), EBADF);
    let wait = Wait::Object(file.id);
    let mut total = 0;
    for &(address, length) in parts {
        let mut done = 0;
        while done < length {
            let want = (length - done).min(files::BOUNCE as u64) as usize;
            let step = || {
                with_buffer(|buffer| {
                    let count = file.read(&mut buffer[..want], at.map(|at| at + total), peek)?;
                    usercopy::write(address + done, &buffer[..count])?;
                    Ok(count as u64)
                })
            };
            let count = match sched::retry(wait, !nonblocking && (total == 0 || all), step) {
                Ok(count) => count,
                Err(error) if total == 0 => return Err(error),
                Err(_) => return Ok(total),
            };
            total += count;
            done += count;
            if count < want as u64 && (!all || count == 0 || peek) {
                return Ok(total);
            }
        }
    }
    if parts.iter().all(|part| part.1 == 0) {
        // A read of nothing still finds out whether there is something to read from.
        return match file.read(&mut [], at, peek) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINVAL) => Ok(0),
            Err(error) => Err(error),
        };
    }
    Ok(total)
}

/// Fills `buffer` from the parts, `skip` bytes on; stops early where the rest cannot be read.
fn gather(parts: &[(u64, u64)], mut skip: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut filled = 0;
    for &(address, length) in parts {
        let count = length.saturating_sub(skip).min((buffer.len() - filled) as u64) as usize;
        match usercopy::read(address + skip.min(length), &mut buffer[filled..filled + count]) {
            Err(error) if filled == 0 => return Err(error),
            Err(_) => break,
            Ok(()) => filled += count,
        }
        skip = skip.saturating_sub(length);
    }
    Ok(filled)
}

/// Writes the parts as one; waits until all is taken.
pub fn write_parts(
    file: &File,
    parts: &[(u64, u64)],
    at: Option<u64>,
    nonblocking: bool,
    quiet: bool,
) -> Answer {
    refuse!(!file.may_write(), EBADF);
    let wait = Wait::Object(file.id);
    let all: u64 = parts.iter().map(|part| part.1).sum();
    let mut total = 0;
    loop {
        let step = || {
            with_buffer(|buffer| {
                let filled = gather(parts, total, buffer)?;
                Ok(file.write(&buffer[..filled], at.map(|at| at + total))? as u64)
            })
        };
        match sched::retry(wait, !nonblocking, step) {
            Ok(count) => {
                let short = count < (all - total).min(files::BOUNCE as u64);
                total += count;
                if total >= all || count == 0 || short && nonblocking {
                    return Ok(total);
                }
            }
            Err(error) => {
                if error == Errno::EPIPE && !quiet {
                    let _ = signal::send(Some(sched::current()), signal::SIGPIPE);
                }
                return if total == 0 { Err(error) } else { Ok(total) };
            }
        }
    }
}

pub fn read(_: &mut Frame, &[fd, at, length, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    read_parts(&file, &one_part(at, length)?, None, file.nonblocking(), false, false)
}

/// Limits: SIGPIPE is sent only where the program did not ignore it.
pub fn write(_: &mut Frame, &[fd, at, length, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    write_parts(&file, &one_part(at, length)?, None, file.nonblocking(), false)
}

pub fn readv(_: &mut Frame, &[fd, at, count, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    read_parts(&file, &parts(at, count)?, None, file.nonblocking(), false, false)
}

pub fn writev(_: &mut Frame, &[fd, at, count, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    write_parts(&file, &parts(at, count)?, None, file.nonblocking(), false)
}

pub fn pread64(_: &mut Frame, &[fd, at, length, offset, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    let part = one_part(at, length)?;
    read_parts(&file, &part, Some(position(offset)?), true, false, false)
}

pub fn pwrite64(_: &mut Frame, &[fd, at, length, offset, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    write_parts(&file, &one_part(at, length)?, Some(position(offset)?), true, false)
}

const RWF_KNOWN: u64 = 1 | 2 | 4 | 8;

/// Limits: no flag but RWF_HIPRI, RWF_DSYNC, RWF_SYNC and RWF_NOWAIT, which change nothing.
pub fn preadv2(_: &mut Frame, args: &Args) -> Answer {
    let file = files::get(args[0])?;
    let offset = vector_position(args)?;
    read_parts(&file, &parts(args[1], args[2])?, offset, true, false, false)
}

pub fn pwritev2(_: &mut Frame, args: &Args) -> Answer {
    let file = files::get(args[0])?;
    let offset = vector_position(args)?;
    write_parts(&file, &parts(args[1], args[2])?, offset, true, false)
}

/// The place, where one is given, and the flags.
fn vector_position(args: &Args) -> Result<Option<u64>, Errno> {
    let first_form = args[5] == FIRST_FORM;
    refuse!(!first_form && args[5] & !RWF_KNOWN != 0, EOPNOTSUPP);
    let given = first_form || args[3] != u64::MAX;
    given.then(|| position(args[3])).transpose()
}

pub fn close(_: &mut Frame, &[fd, ..]: &Args) -> Answer {
    files::close(fd).map(|()| 0)
}

pub fn dup(_: &mut Frame, &[fd, ..]: &Args) -> Answer {
    files::install(files::get(fd)?, false, 0)
}

pub fn dup2(_: &mut Frame, &[old, new, ..]: &Args) -> Answer {
    let file = files::get(old)?;
    if old as u32 != new as u32 {
        files::install_at(file, false, new as u32 as usize)?;
    }
    Ok(u64::from(new as u32))
}

pub fn dup3(_: &mut Frame, &[old, new, flags, ..]: &Args) -> Answer {
    refuse!(flags & !files::O_CLOEXEC != 0 || old as u32 == new as u32, EINVAL);
    files::install_at(files::get(old)?, flags != 0, new as u32 as usize)?;
    Ok(u64::from(new as u32))
}

/// Limits: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL (files::O_APPEND, files::O_NONBLOCK); no record locks,
/// no owners.
pub fn fcntl(_: &mut Frame, &[fd, command, value, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    match command {
        0 | 1030 => {
            refuse!(value >= files::MAX_DESCRIPTORS as u64, EINVAL);
            files::install(file, command == 1030, value as usize)
        }
        1 => Ok(u64::from(files::close_on_exec(fd, None)?)),
        2 => files::close_on_exec(fd, Some(value & 1 != 0)).map(|_| 0),
        3 => Ok(u64::from(file.flags.get())),
        4 => {
            let settable = files::O_APPEND | files::O_NONBLOCK;
            file.flags.set(file.flags.get() & !settable | value as u32 & settable);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Limits: FIONBIO, FIONREAD, FIOCLEX, FIONCLEX; nothing is a terminal (ENOTTY).
pub fn ioctl(_: &mut Frame, &[fd, command, at, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    match command as u32 {
        0x5421 => {
            let on = if usercopy::read_u32(at)? != 0 { files::O_NONBLOCK } else { 0 };
            file.flags.set(file.flags.get() & !files::O_NONBLOCK | on);
            Ok(0)
        }
        0x5450 | 0x5451 => files::close_on_exec(fd, Some(command == 0x5451)).map(|_| 0),
        0x541b => {
            let count = match &file.object {
                Object::PipeReader(stream) | Object::Pair(stream, _) => stream.borrow().len(),
                Object::Socket(socket, _) => network::look(|stack| stack.pending(*socket)),
                Object::File(node) => {
                    let size = files::tree().stat(*node)?.size;
                    size.saturating_sub(file.offset.get()) as usize
                }
                _ => return Err(Errno::ENOTTY),
            };
            usercopy::write_u32(at, count.min(i32::MAX as usize) as u32).map(|()| 0)
        }
        _ => Err(Errno::ENOTTY),
    }
}

/// Installs two files and tells their descriptors.
pub fn install_two((one, two): (Rc<File>, Rc<File>), close_on_exec: bool, at: u64) -> Answer {
    let first = files::install(one, close_on_exec, 0)?;
    let second = files::install(two, close_on_exec, 0);
    let told = second.and_then(|second| usercopy::write_u64(at, first | second << 32));
    if told.is_err() {
        for fd in [Ok(first), second].into_iter().flatten() {
            files::close(fd)?;
        }
    }
    told.map(|()| 0)
}

/// Limits: no O_DIRECT.
pub fn pipe2(_: &mut Frame, &[at, flags, ..]: &Args) -> Answer {
    let (flags, close_on_exec) = files::making_flags(flags, 0)?;
    install_two(File::pipe(flags), close_on_exec, at)
}

pub fn eventfd2(_: &mut Frame, &[value, flags, ..]: &Args) -> Answer {
    let (kept, close_on_exec) = files::making_flags(flags, 1)?;
    let value = Cell::new(u64::from(value as u32));
    let object = Object::Event { value, semaphore: flags & 1 != 0 };
    files::open(object, files::O_RDWR | kept, close_on_exec)
}

/// Events that poll knows; RDHUP among them.
const POLL_EVENTS: u32 = 0x2000 | 0x3ff;
const POLL_NVAL: u32 = 0x20;

/// Waits until `ask` finds something or the time is over; sets the mask for that long.
fn wait_until(
    deadline_us: Option<u64>,
    mask: Option<u64>,
    wait: Wait,
    mut ask: impl FnMut() -> Result<u64, Errno>,
) -> Answer {
    mask.into_iter().for_each(signal::set_mask_for_now);
    let found = loop {
        let found = ask()?;
        if found > 0 {
            break found;
        }
        match sched::block(wait, deadline_us) {
            Woken::Event => {}
            Woken::Timeout => break ask()?,
            Woken::Signal => return Err(Errno::EINTR),
        }
    };
    if mask.is_some() {
        signal::restore_mask();
    }
    Ok(found)
}

fn deadline_from_ms(milliseconds: i64) -> Option<u64> {
    (milliseconds >= 0).then(|| arch::now_us().saturating_add(milliseconds as u64 * 1000))
}

fn read_mask(at: u64, size: u64) -> Result<Option<u64>, Errno> {
    if at == 0 {
        return Ok(None);
    }
    process::check_set_size(size)?;
    Ok(Some(usercopy::read_u64(at)? & !signal::bit(signal::SIGKILL)))
}

fn poll_until(at: u64, count: u64, deadline_us: Option<u64>, mask: Option<u64>) -> Answer {
    refuse!(count > MAX_POLL, EINVAL);
    let mut entries = usercopy::read_words(at, count as usize)?;
    let found = wait_until(deadline_us, mask, Wait::Poll, || {
        let mut found = 0;
        for entry in &mut entries {
            let (fd, events) = (*entry as u32, (*entry >> 32) as u32 & 0xffff);
            let ready = match files::get(u64::from(fd)) {
                _ if (fd as i32) < 0 => 0,
                Ok(file) => file.readiness() & (events & POLL_EVENTS | epoll::ERR | epoll::HUP),
                Err(_) => POLL_NVAL,
            };
            *entry = *entry & 0xffff_ffff_ffff | u64::from(ready) << 48;
            found += u64::from(ready != 0);
        }
        Ok(found)
    })?;
    for (i, entry) in entries.iter().enumerate() {
        usercopy::write(at + 8 * i as u64 + 6, &((entry >> 48) as u16).to_le_bytes())?;
    }
    Ok(found)
}

pub fn poll(_: &mut Frame, &[at, count, timeout, ..]: &Args) -> Answer {
    poll_until(at, count, deadline_from_ms(i64::from(timeout as i32)), None)
}

pub fn ppoll(_: &mut Frame, &[at, count, timeout, mask, size, _]: &Args) -> Answer {
    let deadline = process::read_timeout(timeout)?;
    poll_until(at, count, deadline, read_mask(mask, size)?)
}

fn select_until(args: &Args, deadline_us: Option<u64>, mask: Option<u64>) -> Answer {
    let count = args[0] as u32 as usize;
    refuse!(count > files::MAX_DESCRIPTORS, EINVAL);
    let words = count.div_ceil(64);
    let mut wanted = Vec::new();
    for at in &args[1..4] {
        wanted.push(match at {
            0 => alloc::vec![0; words],
            at => usercopy::read_words(*at, words)?,
        });
    }
    let masks = [epoll::IN | epoll::HUP | epoll::ERR, epoll::OUT | epoll::ERR, epoll::PRI];
    let mut ready = alloc::vec![alloc::vec![0u64; words]; 3];
    let found = wait_until(deadline_us, mask, Wait::Poll, || {
        let mut found = 0;
        ready.iter_mut().for_each(|set| set.fill(0));
        for fd in 0..count {
            let bit = 1 << (fd % 64);
            if wanted.iter().all(|set| set[fd / 64] & bit == 0) {
                continue;
            }
            let now = files::get(fd as u64)?.readiness();
            for (i, set) in wanted.iter().enumerate() {
                if set[fd / 64] & bit != 0 && now & masks[i] != 0 {
                    ready[i][fd / 64] |= bit;
                    found += 1;
                }
            }
        }
        Ok(found)
    })?;
    for (at, set) in args[1..4].iter().zip(&ready).filter(|(at, _)| **at != 0) {
        usercopy::write_words(*at, set)?;
    }
    Ok(found)
}

pub fn select(_: &mut Frame, args: &Args) -> Answer {
    let deadline = match args[4] {
        0 => None,
        at => {
            let words = usercopy::read_words(at, 2)?;
            let time_us = words[0].saturating_mul(1_000_000).saturating_add(words[1]);
            Some(arch::now_us().saturating_add(time_us))
        }
    };
    select_until(args, deadline, None)
}

pub fn pselect6(_: &mut Frame, args: &Args) -> Answer {
    let deadline = process::read_timeout(args[4])?;
    let mask = match args[5] {
        0 => None,
        at => {
            let words = usercopy::read_words(at, 2)?;
            read_mask(words[0], words[1])?
        }
    };
    select_until(args, deadline, mask)
}

pub fn epoll_create1(_: &mut Frame, &[flags, ..]: &Args) -> Answer {
    refuse!(flags & !files::O_CLOEXEC != 0, EINVAL);
    files::open(Object::Epoll(RefCell::new(Epoll::new())), files::O_RDWR, flags != 0)
}

/// Limits: an epoll cannot watch an epoll (EINVAL).
pub fn epoll_ctl(_: &mut Frame, &[fd, operation, target, at, ..]: &Args) -> Answer {
    let (file, watched) = (files::get(fd)?, files::get(target)?);
    let Object::Epoll(interests) = &file.object else { return Err(Errno::EINVAL) };
    refuse!(matches!(watched.object, Object::Epoll(_)), EINVAL);
    refuse!(!watched.pollable(), EPERM);
    let (mut events, mut data) = (0, 0);
    if operation != 2 {
        events = usercopy::read_u32(at)?;
        data = usercopy::read_u64(at + abi::EPOLL_DATA_AT as u64)?;
    }
    let (object, number) = (watched.id, target as i32);
    let result = match operation {
        1 => interests.borrow_mut().add(object, number, events, data),
        2 => interests.borrow_mut().remove(object, number),
        3 => interests.borrow_mut().modify(object, number, events, data),
        _ => return Err(Errno::EINVAL),
    };
    result?;
    if operation != 2 && watched.readiness() != 0 {
        let id = file.id;
        sched::wake(usize::MAX, |wait| *wait == Wait::Object(id));
    }
    Ok(0)
}

pub fn epoll_pwait(_: &mut Frame, &[fd, at, limit, timeout, mask, size]: &Args) -> Answer {
    let mask = read_mask(mask, size)?;
    let file = files::get(fd)?;
    let Object::Epoll(interests) = &file.object else { return Err(Errno::EINVAL) };
    refuse!(limit as i32 <= 0, EINVAL);
    let limit = (limit as usize).min(MAX_EVENTS);
    let deadline = deadline_from_ms(i64::from(timeout as i32));
    sched::service(); // What the network brought meanwhile is told now, not by an interrupt.
    let mut events = Vec::new();
    let mut ready = |object| files::by_id(object).map_or(0, |file| file.readiness());
    let count = wait_until(deadline, mask, Wait::Object(file.id), || {
        events = interests.borrow_mut().collect(limit, &mut ready);
        Ok(events.len() as u64)
    })?;
    let mut bytes = Vec::with_capacity(events.len() * abi::EPOLL_EVENT_SIZE);
    for (events, data) in events {
        bytes.extend_from_slice(&events.to_le_bytes());
        bytes.resize(bytes.len() + abi::EPOLL_DATA_AT - 4, 0);
        bytes.extend_from_slice(&data.to_le_bytes());
    }
    usercopy::write(at, &bytes)?;
    Ok(count)
}
