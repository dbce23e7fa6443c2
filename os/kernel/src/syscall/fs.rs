//! Calls on paths, directories and files.

use super::process::NS;
use super::*;
use alloc::string::String;
use vfs::{Kind, NodeId};

const AT_FDCWD: i32 = -100;
pub const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
pub const AT_REMOVEDIR: u64 = 0x200;
const AT_SYMLINK_FOLLOW: u64 = 0x400;
const AT_EMPTY_PATH: u64 = 0x1000;
const O_CREAT: u64 = 0x40;
const O_EXCL: u64 = 0x80;
const O_TRUNC: u64 = 0x200;
const O_DIRECTORY: u64 = 0x1_0000;
const O_NOFOLLOW: u64 = 0x2_0000;
const O_REFUSED: u64 = 0x4000 | 0x20_0000 | 0x40_0000 & !O_DIRECTORY;
/// Bits of the flags that fcntl shows.
const O_SHOWN: u64 = 3 | 0x400 | 0x800 | 0x1000 | 0x10_1000 | 0x8000;
pub const HERE: u64 = AT_FDCWD as u32 as u64;
/// The type that statfs tells of files in memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The working directory, and the permissions that new files do not get.
static PLACE: Global<(NodeId, u32)> = Global::new((vfs::ROOT, 0o022));

/// Where a relative path begins.
fn base(fd: u64, path: &str) -> Result<NodeId, Errno> {
    if fd as i32 == AT_FDCWD || path.starts_with('/') {
        return Ok(PLACE.get().0);
    }
    match files::get(fd)?.object {
        Object::Directory(node) => Ok(node),
        _ => Err(Errno::ENOTDIR),
    }
}

/// The path at `at`, and where it begins.
fn path_from(fd: u64, at: u64) -> Result<(String, NodeId), Errno> {
    let path = usercopy::read_path(at)?;
    let base = base(fd, &path)?;
    Ok((path, base))
}

/// The node that a path names.
fn find(fd: u64, path: u64, follow: bool) -> Result<NodeId, Errno> {
    let (path, base) = path_from(fd, path)?;
    tree().lookup(base, &path, follow)
}

/// The node behind a descriptor of a file or a directory.
fn node_of(fd: u64) -> Result<NodeId, Errno> {
    match files::get(fd)?.object {
        Object::File(node) | Object::Directory(node) => Ok(node),
        _ => Err(Errno::EINVAL),
    }
}

/// Limits: no O_TMPFILE, O_PATH or O_DIRECT; O_SYNC and O_DSYNC change nothing in memory.
pub fn openat(_: &mut Frame, &[fd, path, flags, mode, ..]: &Args) -> Answer {
    refuse!(flags & O_REFUSED != 0, EINVAL);
    let (path, base) = path_from(fd, path)?;
    let (access, create) = (flags & 3, flags & O_CREAT != 0);
    let made = create && tree().lookup(base, &path, true).is_err();
    let node = if create {
        tree().create(base, &path, flags & O_EXCL != 0, mode as u32 & !PLACE.get().1)?
    } else {
        tree().lookup(base, &path, flags & O_NOFOLLOW == 0)?
    };
    let kind = tree().kind(node)?;
    let object = match kind {
        Kind::Directory => Object::Directory(node),
        Kind::File => Object::File(node),
        Kind::Device(device) => Object::Device(device),
        Kind::Link => return Err(Errno::ELOOP),
    };
    refuse!(flags & O_DIRECTORY != 0 && kind != Kind::Directory, ENOTDIR);
    refuse!(kind == Kind::Directory && (access != 0 || create), EISDIR);
    let (may_read, may_write) = tree().access(node)?;
    if kind == Kind::File && !made {
        refuse!(access != 0 && tree().image_data(node).is_some(), EROFS);
        refuse!(access != 1 && !may_read || access != 0 && !may_write, EACCES);
    }
    let file = files::new_file(object, (flags & O_SHOWN) as u32);
    if flags & O_TRUNC != 0 && access != 0 && kind == Kind::File {
        tree().truncate(node, 0)?;
    }
    files::install(file, flags & files::O_CLOEXEC != 0, 0)
}

/// Limits: SEEK_SET, SEEK_CUR, SEEK_END; no holes.
pub fn lseek(_: &mut Frame, &[fd, offset, whence, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    let base = match (&file.object, whence) {
        (Object::File(_) | Object::Directory(_), 0) => 0,
        (Object::File(_) | Object::Directory(_), 1) => file.offset.get(),
        (Object::File(node), 2) => tree().stat(*node)?.size,
        (Object::File(_) | Object::Directory(_), _) => return Err(Errno::EINVAL),
        (Object::Device(_), _) => return Ok(0),
        _ => return Err(Errno::ESPIPE),
    };
    let target = base.checked_add_signed(offset as i64).filter(|at| *at <= i64::MAX as u64);
    let target = target.ok_or(Errno::EINVAL)?;
    file.offset.set(target);
    Ok(target)
}

fn write_stat(at: u64, stat: &vfs::Stat) -> Answer {
    usercopy::write(at, &abi::stat_bytes(stat, USER)).map(|()| 0)
}

fn stat_of(file: &File) -> Result<vfs::Stat, Errno> {
    let mode = match &file.object {
        Object::File(node) | Object::Directory(node) => return tree().stat(*node),
        Object::Device(_) => 0o020_666,
        Object::PipeReader(_) | Object::PipeWriter(_) => 0o010_600,
        Object::Pair(..) | Object::Socket(..) => 0o140_777,
        Object::Event { .. } | Object::Epoll(_) => 0o600,
    };
    let (inode, changed_ns) = (file.id + (1 << 32), date::date_ns());
    Ok(vfs::Stat { inode, mode, links: 1, size: 0, blocks: 0, changed_ns })
}

/// Limits: one time for access, change and modification.
pub fn fstat(_: &mut Frame, &[fd, at, ..]: &Args) -> Answer {
    write_stat(at, &stat_of(&*files::get(fd)?)?)
}

pub fn newfstatat(_: &mut Frame, &[fd, path, at, flags, ..]: &Args) -> Answer {
    refuse!(flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | 0x800) != 0, EINVAL);
    let path = usercopy::read_path(path)?;
    let itself = path.is_empty() && flags & AT_EMPTY_PATH != 0;
    if itself && fd as i32 != AT_FDCWD {
        return write_stat(at, &stat_of(&*files::get(fd)?)?);
    }
    let base = base(fd, &path)?;
    let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
    let node = if itself { base } else { tree().lookup(base, &path, follow)? };
    let stat = tree().stat(node)?;
    write_stat(at, &stat)
}

pub fn faccessat2(_: &mut Frame, &[fd, path, mode, flags, ..]: &Args) -> Answer {
    refuse!(mode & !7 != 0 || flags & !(AT_SYMLINK_NOFOLLOW | 0x200) != 0, EINVAL);
    let node = find(fd, path, flags & AT_SYMLINK_NOFOLLOW == 0)?;
    let (read, write) = tree().access(node)?;
    let execute = tree().stat(node)?.mode & 0o100 != 0;
    if mode & 2 != 0 && !write {
        let fixed = tree().image_data(node).is_some();
        return Err(if fixed { Errno::EROFS } else { Errno::EACCES });
    }
    refuse!(mode & 4 != 0 && !read || mode & 1 != 0 && !execute, EACCES);
    Ok(0)
}

pub fn getdents64(_: &mut Frame, &[fd, at, size, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    let Object::Directory(node) = file.object else { return Err(Errno::ENOTDIR) };
    let size = size.min(files::BOUNCE as u64) as usize;
    let mut bytes = Vec::new();
    let mut position = file.offset.get() as usize;
    while let Some(entry) = tree().entry(node, position)? {
        let length = (19 + entry.name.len() + 1).next_multiple_of(8);
        if bytes.len() + length > size {
            refuse!(bytes.is_empty(), EINVAL);
            break;
        }
        position += 1;
        let end = bytes.len() + length;
        let kind = match entry.kind {
            Kind::Directory => 4,
            Kind::File => 8,
            Kind::Link => 10,
            Kind::Device(_) => 2,
        };
        bytes.extend_from_slice(&entry.inode.to_le_bytes());
        bytes.extend_from_slice(&(position as u64).to_le_bytes());
        bytes.extend_from_slice(&(length as u16).to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(entry.name.as_bytes());
        bytes.resize(end, 0);
    }
    usercopy::write(at, &bytes)?;
    file.offset.set(position as u64);
    Ok(bytes.len() as u64)
}

pub fn mkdirat(_: &mut Frame, &[fd, path, mode, ..]: &Args) -> Answer {
    let (path, base) = path_from(fd, path)?;
    tree().mkdir(base, &path, mode as u32 & !PLACE.get().1).map(|()| 0)
}

pub fn unlinkat(_: &mut Frame, &[fd, path, flags, ..]: &Args) -> Answer {
    refuse!(flags & !AT_REMOVEDIR != 0, EINVAL);
    let (path, base) = path_from(fd, path)?;
    let mut tree = tree();
    let done = if flags == 0 { tree.unlink(base, &path) } else { tree.rmdir(base, &path) };
    done.map(|()| 0)
}

/// Limits: RENAME_NOREPLACE is the only flag; both directories are the working directory or the
/// same, or the paths absolute.
pub fn renameat2(_: &mut Frame, &[old_fd, old, new_fd, new, flags, _]: &Args) -> Answer {
    refuse!(flags & !1 != 0, EINVAL);
    let (old, new, base) = two_paths(old_fd, old, new_fd, new)?;
    refuse!(flags == 1 && tree().lookup(base, &new, false).is_ok(), EEXIST);
    tree().rename(base, &old, &new).map(|()| 0)
}

/// Two paths, and one directory that both begin at.
fn two_paths(fd: u64, old: u64, new_fd: u64, new: u64) -> Result<(String, String, NodeId), Errno> {
    let (old, new) = (usercopy::read_path(old)?, usercopy::read_path(new)?);
    let (first, second) = (base(fd, &old)?, base(new_fd, &new)?);
    refuse!(!old.starts_with('/') && !new.starts_with('/') && first != second, EXDEV);
    let base = if old.starts_with('/') { second } else { first };
    Ok((old, new, base))
}

/// Limits: directories as for renameat2.
pub fn linkat(_: &mut Frame, &[old_fd, old, new_fd, new, flags, _]: &Args) -> Answer {
    refuse!(flags & !AT_SYMLINK_FOLLOW != 0, EINVAL);
    let (old, new, base) = two_paths(old_fd, old, new_fd, new)?;
    tree().link(base, &old, &new).map(|()| 0)
}

pub fn symlinkat(_: &mut Frame, &[target, fd, path, ..]: &Args) -> Answer {
    let target = usercopy::read_path(target)?;
    let (path, base) = path_from(fd, path)?;
    tree().symlink(base, &path, &target).map(|()| 0)
}

pub fn readlinkat(_: &mut Frame, &[fd, path, at, size, ..]: &Args) -> Answer {
    refuse!(size as i32 <= 0, EINVAL);
    let (path, base) = path_from(fd, path)?;
    let target = tree().readlink(base, &path)?;
    let length = target.len().min(size as usize);
    usercopy::write(at, &target.as_bytes()[..length])?;
    Ok(length as u64)
}

pub fn fchmodat(_: &mut Frame, &[fd, path, mode, ..]: &Args) -> Answer {
    let node = find(fd, path, true)?;
    tree().chmod(node, mode as u32).map(|()| 0)
}

pub fn fchmod(_: &mut Frame, &[fd, mode, ..]: &Args) -> Answer {
    let node = node_of(fd)?;
    tree().chmod(node, mode as u32).map(|()| 0)
}

pub fn umask(_: &mut Frame, &[mask, ..]: &Args) -> Answer {
    Ok(u64::from(core::mem::replace(&mut PLACE.get().1, mask as u32 & 0o777)))
}

/// Limits: only the time of modification is kept.
pub fn utimensat(_: &mut Frame, &[fd, path, times, flags, ..]: &Args) -> Answer {
    const UTIME_NOW: u64 = (1 << 30) - 1;
    const UTIME_OMIT: u64 = (1 << 30) - 2;
    let changed = if times == 0 {
        Some(date::date_ns())
    } else {
        match usercopy::read_words(times, 4)?[2..] {
            [_, UTIME_NOW] => Some(date::date_ns()),
            [_, UTIME_OMIT] => None,
            [seconds, ns] if ns < NS => Some(seconds.saturating_mul(NS).saturating_add(ns)),
            _ => return Err(Errno::EINVAL),
        }
    };
    let node = match path {
        0 => node_of(fd)?,
        path => find(fd, path, flags & AT_SYMLINK_NOFOLLOW == 0)?,
    };
    changed.map_or(Ok(()), |changed| tree().set_time(node, changed)).map(|()| 0)
}

/// A length or a place in a file.
pub fn length(value: u64) -> Result<u64, Errno> {
    i64::try_from(value).map(|v| v as u64).map_err(|_| Errno::EINVAL)
}

fn set_length(node: NodeId, value: u64) -> Answer {
    refuse!(value > vfs::MAX_FILE, EFBIG);
    tree().truncate(node, value).map(|()| 0)
}

pub fn truncate(_: &mut Frame, &[path, size, ..]: &Args) -> Answer {
    let (node, size) = (find(HERE, path, true)?, length(size)?);
    refuse!(tree().kind(node)? == Kind::Directory, EISDIR);
    set_length(node, size)
}

pub fn ftruncate(_: &mut Frame, &[fd, size, ..]: &Args) -> Answer {
    let (file, size) = (files::get(fd)?, length(size)?);
    match file.object {
        Object::File(node) if file.may_write() => set_length(node, size),
        _ => Err(Errno::EINVAL),
    }
}

/// Limits: mode 0 and FALLOC_FL_KEEP_SIZE.
pub fn fallocate(_: &mut Frame, &[fd, mode, offset, size, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    refuse!(mode & !1 != 0, EOPNOTSUPP);
    let (offset, size) = (length(offset)?, length(size)?);
    let end = offset.checked_add(size).filter(|end| *end <= vfs::MAX_FILE).ok_or(Errno::EFBIG)?;
    let Object::File(node) = file.object else { return Err(Errno::ENODEV) };
    refuse!(!file.may_write(), EBADF);
    refuse!(size == 0, EINVAL);
    // What cannot be written later must be refused now.
    refuse!(size > vfs::MAX_MEMORY || size / 4096 > frames::available() as u64, ENOSPC);
    if mode == 0 && end > tree().stat(node)?.size {
        return set_length(node, end);
    }
    Ok(0)
}

/// Limits: files are in memory: there is nothing to wait for.
pub fn fsync(_: &mut Frame, &[fd, ..]: &Args) -> Answer {
    node_of(fd).map(|_| 0)
}

pub fn flock(_: &mut Frame, &[fd, operation, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    let kind = match operation & !4 {
        1 => 1,
        2 => 2,
        8 => 0,
        _ => return Err(Errno::EINVAL),
    };
    sched::retry(Wait::Poll, operation & 4 == 0, || files::lock(&file, kind)).map(|()| 0)
}

fn write_statfs(at: u64) -> Answer {
    let (used, nodes) = tree().usage();
    let total = vfs::MAX_MEMORY / 4096;
    let free = (total - used / 4096).min(frames::available() as u64);
    let inodes = vfs::MAX_NODES as u64;
    let (left, name) = (inodes - nodes as u64, vfs::MAX_NAME as u64);
    let kind = TMPFS_MAGIC;
    usercopy::write_words(at, &[kind, 4096, total, free, free, inodes, left, 0, name, 4096])?;
    usercopy::write_words(at + 80, &[0; 5])
}

pub fn statfs(_: &mut Frame, &[path, at, ..]: &Args) -> Answer {
    find(HERE, path, true)?;
    write_statfs(at)
}

pub fn fstatfs(_: &mut Frame, &[fd, at, ..]: &Args) -> Answer {
    files::get(fd)?;
    write_statfs(at)
}

pub fn getcwd(_: &mut Frame, &[at, size, ..]: &Args) -> Answer {
    let mut path = tree().path_of(PLACE.get().0)?;
    path.push('\0');
    refuse!(path.len() as u64 > size, ERANGE);
    usercopy::write(at, path.as_bytes())?;
    Ok(path.len() as u64)
}

fn change_directory(node: NodeId) -> Answer {
    refuse!(tree().kind(node)? != Kind::Directory, ENOTDIR);
    let before = core::mem::replace(&mut PLACE.get().0, node);
    let mut tree = tree();
    tree.retain(node);
    if before != vfs::ROOT {
        tree.release(before);
    }
    Ok(0)
}

pub fn chdir(_: &mut Frame, &[path, ..]: &Args) -> Answer {
    change_directory(find(HERE, path, true)?)
}

pub fn fchdir(_: &mut Frame, &[fd, ..]: &Args) -> Answer {
    match files::get(fd)?.object {
        Object::Directory(node) => change_directory(node),
        _ => Err(Errno::ENOTDIR),
    }
}
