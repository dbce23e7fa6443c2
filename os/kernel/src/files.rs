//! Open files: what a descriptor names, and who is told when one becomes ready.

use crate::mm::{frames, Global};
use crate::sched::{self, Wait};
use crate::syscall::{refuse, Errno};
use crate::{console, network, random};
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell, RefMut};
use epoll::Epoll;
use net::SocketId;
use vfs::{Device, NodeId, Stream, Tree};

/// Descriptors: the stated 4,096 connections and what a server opens beside them.
pub const MAX_DESCRIPTORS: usize = 4352;
/// Bytes moved between the program and an object in one step.
pub const BOUNCE: usize = 64 << 10;

pub const O_ACCMODE: u32 = 3;
pub const O_WRONLY: u32 = 1;
pub const O_RDWR: u32 = 2;
pub const O_APPEND: u32 = 0x400;
pub const O_NONBLOCK: u32 = 0x800;
pub const O_CLOEXEC: u64 = 0x8_0000;

pub enum Object {
    File(NodeId),
    Directory(NodeId),
    Device(Device),
    PipeReader(Rc<RefCell<Stream>>),
    PipeWriter(Rc<RefCell<Stream>>),
    /// One end of a socket pair: what it reads, and what it writes.
    Pair(Rc<RefCell<Stream>>, Rc<RefCell<Stream>>),
    Event {
        value: Cell<u64>,
        semaphore: bool,
    },
    Epoll(RefCell<Epoll>),
    Socket(SocketId, net::Kind),
}

pub struct File {
    /// Never used again: waiting threads and epoll know the file by it.
    pub id: u64,
    pub object: Object,
    pub flags: Cell<u32>,
    pub offset: Cell<u64>,
    /// The other end of a pipe or a pair.
    pub peer: Cell<u64>,
    /// Socket options that are kept to be read back: see `syscall::sockets`.
    pub options: Cell<u32>,
    /// The lock of `flock`: nought, or shared 1, or exclusive 2.
    pub lock: Cell<u32>,
}

#[derive(Clone)]
struct Slot {
    file: Rc<File>,
    close_on_exec: bool,
}

struct Table {
    slots: Vec<Option<Slot>>,
    next_id: u64,
    /// Every open file by its number.
    by_id: BTreeMap<u64, Weak<File>>,
    epolls: Vec<Weak<File>>,
}

static TABLE: Global<Table> = Global::new(Table {
    slots: Vec::new(),
    next_id: 1,
    by_id: BTreeMap::new(),
    epolls: Vec::new(),
});
static TREE: Global<Option<Tree>> = Global::new(None);

pub fn init(tree: Tree) {
    *TREE.get() = Some(tree);
    for _ in 0..3 {
        let file = new_file(Object::Device(Device::Console), O_RDWR);
        let _ = install(file, false, 0);
    }
}

/// The file tree, for one step.
pub fn tree() -> RefMut<'static, Tree> {
    RefMut::map(TREE.get(), |tree| tree.as_mut().expect("the tree was set up"))
}

/// Puts a file of the system's own making in place.
pub fn system_file(path: &str, data: &[u8], permissions: u32) {
    if tree().put(path, data, permissions).is_err() {
        crate::error!("no room for {path}");
    }
}

pub fn new_file(object: Object, flags: u32) -> Rc<File> {
    let mut table = TABLE.get();
    let id = table.next_id;
    table.next_id += 1;
    let file = Rc::new(File {
        id,
        object,
        flags: Cell::new(flags),
        offset: Cell::new(0),
        peer: Cell::new(0),
        options: Cell::new(0),
        lock: Cell::new(0),
    });
    table.by_id.insert(id, Rc::downgrade(&file));
    if matches!(file.object, Object::Epoll(_)) {
        table.epolls.push(Rc::downgrade(&file));
    }
    drop(table);
    match file.object {
        Object::Socket(socket, _) => network::own(socket, Some(id)),
        Object::File(node) | Object::Directory(node) => tree().retain(node),
        _ => {}
    }
    file
}

/// The flags of a call that makes a descriptor: what the file keeps, and whether it is closed on
/// exec. EINVAL for any but these two and `others`.
pub fn making_flags(flags: u64, others: u64) -> Result<(u32, bool), Errno> {
    refuse!(flags & !(O_CLOEXEC | u64::from(O_NONBLOCK) | others) != 0, EINVAL);
    Ok((flags as u32 & O_NONBLOCK, flags & O_CLOEXEC != 0))
}

/// Opens an object under the lowest free descriptor.
pub fn open(object: Object, flags: u32, close_on_exec: bool) -> Result<u64, Errno> {
    install(new_file(object, flags), close_on_exec, 0)
}

/// Gives a file the lowest free descriptor from `from` on.
pub fn install(file: Rc<File>, close_on_exec: bool, from: usize) -> Result<u64, Errno> {
    let at = {
        let slots = &TABLE.get().slots;
        let free = (from..slots.len()).find(|at| slots[*at].is_none());
        free.unwrap_or(slots.len().max(from))
    };
    install_at(file, close_on_exec, at).map_err(|_| Errno::EMFILE)?;
    Ok(at as u64)
}

/// Puts a file at a given descriptor, in the place of what was there.
pub fn install_at(file: Rc<File>, close_on_exec: bool, at: usize) -> Result<(), Errno> {
    refuse!(at >= MAX_DESCRIPTORS, EBADF);
    let before = {
        let mut table = TABLE.get();
        let length = table.slots.len().max(at + 1);
        table.slots.resize(length, None);
        table.slots[at].replace(Slot { file, close_on_exec })
    };
    drop(before); // Its end takes the table.
    Ok(())
}

pub fn get(fd: u64) -> Result<Rc<File>, Errno> {
    let table = TABLE.get();
    let slot = table.slots.get(fd as u32 as usize).and_then(|slot| slot.as_ref());
    slot.map(|slot| slot.file.clone()).ok_or(Errno::EBADF)
}

/// The open file of that number.
pub fn by_id(id: u64) -> Option<Rc<File>> {
    TABLE.get().by_id.get(&id).and_then(Weak::upgrade)
}

pub fn close(fd: u64) -> Result<(), Errno> {
    let slot = {
        let mut table = TABLE.get();
        table.slots.get_mut(fd as u32 as usize).and_then(|slot| slot.take())
    };
    slot.map(drop).ok_or(Errno::EBADF)
}

pub fn close_on_exec(fd: u64, set: Option<bool>) -> Result<bool, Errno> {
    let mut table = TABLE.get();
    let slot = table.slots.get_mut(fd as u32 as usize).and_then(|slot| slot.as_mut());
    let kept = &mut slot.ok_or(Errno::EBADF)?.close_on_exec;
    *kept = set.unwrap_or(*kept);
    Ok(*kept)
}

/// Open descriptors.
pub fn count() -> usize {
    TABLE.get().slots.iter().flatten().count()
}

impl Drop for File {
    fn drop(&mut self) {
        TABLE.get().by_id.remove(&self.id);
        match &self.object {
            Object::PipeReader(stream) => stream.borrow_mut().reader_closed = true,
            Object::PipeWriter(stream) => stream.borrow_mut().writer_closed = true,
            Object::Pair(input, output) => {
                input.borrow_mut().reader_closed = true;
                output.borrow_mut().writer_closed = true;
            }
            Object::Socket(socket, _) => {
                network::own(*socket, None);
                network::with(|stack, now| stack.close(*socket, now));
            }
            Object::File(node) | Object::Directory(node) => tree().release(*node),
            _ => {}
        }
        if self.lock.get() != 0 {
            notify(self.id); // Who waits for the lock waits for any file.
        }
        for epoll in live_epolls() {
            if let Object::Epoll(epoll) = &epoll.object {
                epoll.borrow_mut().remove_object(self.id);
            }
        }
        if self.peer.get() != 0 {
            notify(self.peer.get());
        }
    }
}

fn live_epolls() -> Vec<Rc<File>> {
    let mut table = TABLE.get();
    table.epolls.retain(|epoll| epoll.strong_count() > 0);
    table.epolls.iter().filter_map(Weak::upgrade).collect()
}

/// The object may have become ready: wakes who waits for it.
pub fn notify(object: u64) {
    for epoll in live_epolls() {
        if let Object::Epoll(interests) = &epoll.object {
            if interests.borrow_mut().notify(object) {
                let id = epoll.id;
                sched::wake(usize::MAX, |wait| *wait == Wait::Object(id));
            }
        }
    }
    sched::wake(usize::MAX, |wait| *wait == Wait::Object(object) || *wait == Wait::Poll);
}

/// Takes or gives back the lock of `flock`; EAGAIN where another file's is in the way.
pub fn lock(file: &File, kind: u32) -> Result<(), Errno> {
    let Object::File(node) = file.object else { return Ok(()) };
    let in_the_way = |other: Rc<File>| {
        let same = matches!(other.object, Object::File(n) if n == node) && other.id != file.id;
        let held = other.lock.get();
        same && held != 0 && kind != 0 && (kind == 2 || held == 2)
    };
    let blocked = TABLE.get().by_id.values().filter_map(Weak::upgrade).any(in_the_way);
    refuse!(blocked, EAGAIN);
    file.lock.set(kind);
    notify(file.id);
    Ok(())
}

impl File {
    fn joined(one: Object, two: Object, flags: [u32; 2]) -> (Rc<File>, Rc<File>) {
        let (first, second) = (new_file(one, flags[0]), new_file(two, flags[1]));
        first.peer.set(second.id);
        second.peer.set(first.id);
        (first, second)
    }

    /// A pair of files over one stream: the reader, the writer.
    pub fn pipe(flags: u32) -> (Rc<File>, Rc<File>) {
        let stream = Rc::new(RefCell::new(Stream::new()));
        let (reader, writer) = (Object::PipeReader(stream.clone()), Object::PipeWriter(stream));
        File::joined(reader, writer, [flags, flags | O_WRONLY])
    }

    pub fn pair(flags: u32) -> (Rc<File>, Rc<File>) {
        let (one, two) = <(Rc<RefCell<Stream>>, Rc<RefCell<Stream>>)>::default();
        let first = Object::Pair(one.clone(), two.clone());
        File::joined(first, Object::Pair(two, one), [flags | O_RDWR; 2])
    }

    pub fn nonblocking(&self) -> bool {
        self.flags.get() & O_NONBLOCK != 0
    }

    pub fn may_read(&self) -> bool {
        self.flags.get() & O_ACCMODE != O_WRONLY
    }

    pub fn may_write(&self) -> bool {
        self.flags.get() & O_ACCMODE != 0
    }

    /// The events of epoll and poll that hold now.
    pub fn readiness(&self) -> u32 {
        let bit = |condition: bool, events: u32| if condition { events } else { 0 };
        let readable = epoll::IN | epoll::RDNORM;
        let writable = epoll::OUT | epoll::WRNORM;
        match &self.object {
            Object::PipeReader(stream) => {
                let stream = stream.borrow();
                bit(!stream.is_empty(), readable) | bit(stream.writer_closed, epoll::HUP)
            }
            Object::PipeWriter(stream) => {
                let stream = stream.borrow();
                bit(stream.writable(), writable) | bit(stream.reader_closed, epoll::ERR)
            }
            Object::Pair(input, output) => {
                let (input, output) = (input.borrow(), output.borrow());
                bit(input.readable(), readable)
                    | bit(output.writable(), writable)
                    | bit(input.writer_closed, epoll::RDHUP)
                    | bit(input.writer_closed && output.reader_closed, epoll::HUP)
            }
            Object::Event { value, .. } => {
                bit(value.get() > 0, readable) | bit(value.get() < u64::MAX - 1, writable)
            }
            Object::Epoll(interests) => bit(interests.borrow().may_be_ready(), readable),
            Object::Socket(socket, _) => {
                let ready = network::look(|stack| stack.readiness(*socket));
                bit(ready.readable, readable)
                    | bit(ready.writable, writable)
                    | bit(ready.read_closed, epoll::RDHUP)
                    | bit(ready.hung_up, epoll::HUP)
                    | bit(ready.error, epoll::ERR)
            }
            Object::Device(Device::Console) => writable,
            _ => readable | writable,
        }
    }

    /// Whether epoll can watch it: files and directories are always ready (EPERM on Linux).
    pub fn pollable(&self) -> bool {
        !matches!(self.object, Object::File(_) | Object::Directory(_))
    }

    /// Reads what is there now. `at` is the place for positioned reads.
    pub fn read(&self, out: &mut [u8], at: Option<u64>, peek: bool) -> Result<usize, Errno> {
        let seekable = matches!(self.object, Object::File(_) | Object::Directory(_));
        refuse!(at.is_some() && !seekable, ESPIPE);
        match &self.object {
            Object::File(node) => {
                let offset = at.unwrap_or(self.offset.get());
                let count = tree().read_at(*node, offset, out)?;
                if at.is_none() {
                    self.offset.set(offset + count as u64);
                }
                Ok(count)
            }
            Object::Directory(_) => Err(Errno::EISDIR),
            // Nobody types: the end at once.
            Object::Device(Device::Null | Device::Console) => Ok(0),
            Object::Device(Device::Zero) => {
                out.fill(0);
                Ok(out.len())
            }
            Object::Device(Device::Random) => {
                random::fill(out);
                Ok(out.len())
            }
            Object::PipeReader(stream) | Object::Pair(stream, _) => {
                let count = stream.borrow_mut().read(out, peek)?;
                if count > 0 && !peek {
                    notify(self.peer.get());
                }
                Ok(count)
            }
            Object::Event { value, semaphore } => {
                refuse!(out.len() < 8, EINVAL);
                let now = value.get();
                refuse!(now == 0, EAGAIN);
                let taken = if *semaphore { 1 } else { now };
                value.set(now - taken);
                out[..8].copy_from_slice(&taken.to_le_bytes());
                notify(self.id);
                Ok(8)
            }
            Object::Socket(socket, _) => network::with(|stack, _| stack.recv(*socket, out, peek)),
            Object::PipeWriter(_) => Err(Errno::EBADF),
            Object::Epoll(_) => Err(Errno::EINVAL),
        }
    }

    /// Writes what fits now.
    pub fn write(&self, data: &[u8], at: Option<u64>) -> Result<usize, Errno> {
        refuse!(at.is_some() && !matches!(self.object, Object::File(_)), ESPIPE);
        match &self.object {
            Object::File(node) => {
                // Files in memory stop before the frames that the kernel itself needs.
                refuse!(frames::available() < data.len() / 4096 + 64, ENOSPC);
                let append = self.flags.get() & O_APPEND != 0;
                let offset = match at {
                    _ if append => tree().stat(*node)?.size,
                    Some(at) => at,
                    None => self.offset.get(),
                };
                let count = tree().write_at(*node, offset, data)?;
                if at.is_none() {
                    self.offset.set(offset + count as u64);
                }
                Ok(count)
            }
            Object::Device(Device::Console) => {
                console::write_bytes(data);
                Ok(data.len())
            }
            Object::Device(_) => Ok(data.len()),
            Object::PipeWriter(stream) | Object::Pair(_, stream) => {
                refuse!(frames::available() < 64, ENOBUFS);
                let count = stream.borrow_mut().write(data)?;
                notify(self.peer.get());
                Ok(count)
            }
            Object::Event { value, .. } => {
                let bytes = data.get(..8).and_then(|b| b.try_into().ok()).ok_or(Errno::EINVAL)?;
                let added = u64::from_le_bytes(bytes);
                refuse!(added == u64::MAX, EINVAL);
                let sum = value.get().checked_add(added).filter(|sum| *sum < u64::MAX);
                value.set(sum.ok_or(Errno::EAGAIN)?);
                notify(self.id);
                Ok(8)
            }
            Object::Socket(socket, net::Kind::Stream) => {
                refuse!(frames::available() < 64, ENOBUFS);
                match network::with(|stack, _| stack.send(*socket, data)) {
                    // Linux's answer for a stream that was never connected.
                    Err(Errno::ENOTCONN) => Err(Errno::EPIPE),
                    result => result,
                }
            }
            Object::Socket(socket, net::Kind::Datagram) => {
                network::with(|stack, now| stack.send_to(*socket, data, None, now))
            }
            Object::PipeReader(_) => Err(Errno::EBADF),
            Object::Directory(_) => Err(Errno::EISDIR),
            Object::Epoll(_) => Err(Errno::EINVAL),
        }
    }
}

/// Makes the writable directories, the devices and the small files that programs expect.
pub fn furnish(tree: &mut Tree) -> Result<(), Errno> {
    for path in ["/tmp", "/run", "/data", "/var/tmp", "/dev/shm", "/home"] {
        let directory = tree.make_writable(path)?;
        tree.chmod(directory, 0o1777)?;
    }
    tree.put_device("/dev/null", Device::Null)?;
    tree.put_device("/dev/zero", Device::Zero)?;
    tree.put_device("/dev/random", Device::Random)?;
    tree.put_device("/dev/urandom", Device::Random)?;
    tree.put_device("/dev/console", Device::Console)?;
    let name = alloc::format!("{}\n", crate::syscall::HOST_NAME);
    tree.put("/etc/hostname", name.as_bytes(), 0o444)
}
