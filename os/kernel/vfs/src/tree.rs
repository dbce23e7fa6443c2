//! Directories, files, links and devices by number.

use crate::*;
use alloc::boxed::Box;
use alloc::collections::btree_map::{BTreeMap, Entry as Slot};
use alloc::string::String;
use alloc::vec::Vec;

const PAGE: u64 = 4096;

/// The number of a node; its inode number is one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(u32);

pub const ROOT: NodeId = NodeId(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Null,
    Zero,
    Random,
    Console,
}

pub enum Content {
    Directory(BTreeMap<String, NodeId>),
    /// Bytes of the root image.
    Image(&'static [u8]),
    Memory {
        pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
        size: u64,
    },
    Link(String),
    Device(Device),
}

const NO_NAMES: Content = Content::Directory(BTreeMap::new());
const NO_BYTES: Content = Content::Memory { pages: BTreeMap::new(), size: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Link,
    Device(Device),
}

pub struct Node {
    content: Content,
    permissions: u32,
    links: u32,
    opens: u32,
    changed_ns: u64,
    parent: NodeId,
    /// Of a directory: whether its list of names may change.
    writable: bool,
}

impl Node {
    pub fn new(content: Content, permissions: u32, changed_ns: u64) -> Node {
        let links = if matches!(content, Content::Directory(_)) { 2 } else { 1 };
        let permissions = permissions & 0o7777;
        Node { content, permissions, links, opens: 0, changed_ns, parent: ROOT, writable: false }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub inode: u64,
    /// Type and permissions as `stat` packs them.
    pub mode: u32,
    pub links: u32,
    pub size: u64,
    pub blocks: u64,
    pub changed_ns: u64,
}

/// A name in a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub inode: u64,
    pub kind: Kind,
}

pub struct Tree {
    nodes: Vec<Option<Node>>,
    free: Vec<u32>,
    /// Bytes of pages of files in memory.
    used: u64,
    /// The date in nanoseconds since 1970.
    clock: fn() -> u64,
}

impl Tree {
    /// A tree with nothing but its root.
    pub fn new(clock: fn() -> u64) -> Tree {
        let root = Node { opens: 1, ..Node::new(NO_NAMES, 0o755, 0) };
        Tree { nodes: alloc::vec![Some(root)], free: Vec::new(), used: 0, clock }
    }

    /// Bytes that files in memory take, and how many nodes there are.
    pub fn usage(&self) -> (u64, usize) {
        (self.used, self.nodes.len() - self.free.len())
    }

    fn node(&self, id: NodeId) -> Result<&Node> {
        self.nodes.get(id.0 as usize).and_then(|n| n.as_ref()).ok_or(Error::ENOENT)
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(id.0 as usize).and_then(|n| n.as_mut()).ok_or(Error::ENOENT)
    }

    fn names(&self, id: NodeId) -> Result<&BTreeMap<String, NodeId>> {
        match &self.node(id)?.content {
            Content::Directory(names) => Ok(names),
            _ => Err(Error::ENOTDIR),
        }
    }

    fn names_mut(&mut self, id: NodeId) -> Result<&mut BTreeMap<String, NodeId>> {
        match &mut self.node_mut(id)?.content {
            Content::Directory(names) => Ok(names),
            _ => Err(Error::ENOTDIR),
        }
    }

    /// Puts a node under a name, without asking whether the directory is writable.
    pub fn insert(&mut self, parent: NodeId, name: &str, node: Node) -> Result<NodeId> {
        refuse!(name.is_empty() || name == "." || name == "..", EEXIST);
        refuse!(name.len() > MAX_NAME, ENAMETOOLONG);
        refuse!(self.names(parent)?.contains_key(name), EEXIST);
        refuse!(self.nodes.len() - self.free.len() >= MAX_NODES, ENOSPC);
        let (writable, changed_ns) = (self.node(parent)?.writable, node.changed_ns);
        let id = NodeId(self.free.pop().unwrap_or(self.nodes.len() as u32));
        if id.0 as usize == self.nodes.len() {
            self.nodes.push(None);
        }
        self.nodes[id.0 as usize] = Some(Node { writable, ..node });
        self.attach(parent, name, id, changed_ns)?;
        Ok(id)
    }

    /// A new node, under a name in a directory that may be changed.
    fn add(&mut self, at: (NodeId, String), content: Content, permissions: u32) -> Result<NodeId> {
        self.check_writable(at.0)?;
        let node = Node::new(content, permissions, (self.clock)());
        self.insert(at.0, &at.1, node)
    }

    /// Gives a node a name. A directory counts as one more link of the one that it is in.
    fn attach(&mut self, parent: NodeId, name: &str, id: NodeId, now_ns: u64) -> Result<()> {
        self.names_mut(parent)?.insert(String::from(name), id);
        self.node_mut(id)?.parent = parent;
        let directory = self.kind(id)? == Kind::Directory;
        let above = self.node_mut(parent)?;
        above.changed_ns = now_ns;
        above.links += u32::from(directory);
        Ok(())
    }

    /// Takes a name from a node.
    fn detach(&mut self, parent: NodeId, name: &str) -> Result<NodeId> {
        let id = self.names_mut(parent)?.remove(name).ok_or(Error::ENOENT)?;
        let (directory, now_ns) = (self.kind(id)? == Kind::Directory, (self.clock)());
        let above = self.node_mut(parent)?;
        above.changed_ns = now_ns;
        above.links -= u32::from(directory);
        Ok(id)
    }

    /// Takes a name away, and with its last one the node, unless it is open.
    fn remove(&mut self, parent: NodeId, name: &str) -> Result<()> {
        let id = self.detach(parent, name)?;
        let directory = self.kind(id)? == Kind::Directory;
        let node = self.node_mut(id)?;
        node.links = if directory { 0 } else { node.links - 1 };
        self.collect(id);
        Ok(())
    }

    /// The node that `path` names, from `base` where it is relative.
    pub fn lookup(&self, base: NodeId, path: &str, follow: bool) -> Result<NodeId> {
        let (parent, name) = self.resolve(base, path, follow)?;
        match name {
            None => Ok(parent),
            Some(name) => self.names(parent)?.get(&name).copied().ok_or(Error::ENOENT),
        }
    }

    /// The directory that holds the last part of `path`, and that part; `None` where the path
    /// ends in the directory itself. Links on the way are followed, the last one where `follow`.
    fn resolve(&self, base: NodeId, path: &str, follow: bool) -> Result<(NodeId, Option<String>)> {
        refuse!(path.is_empty(), ENOENT);
        let mut rest = String::from(path);
        let mut at = base;
        let mut links = 0;
        loop {
            refuse!(rest.len() > MAX_PATH, ENAMETOOLONG);
            if rest.starts_with('/') {
                at = ROOT;
            }
            let trimmed = rest.trim_start_matches('/');
            let (part, after) = trimmed.split_once('/').unwrap_or((trimmed, ""));
            let must_be_directory = trimmed.len() > part.len();
            let last = after.trim_matches('/').is_empty();
            refuse!(part.len() > MAX_NAME, ENAMETOOLONG);
            match part {
                "" => return Ok((at, None)),
                "." => {
                    self.names(at)?;
                }
                ".." => {
                    self.names(at)?;
                    at = self.node(at)?.parent;
                }
                _ => {
                    let found = self.names(at)?.get(part).copied();
                    let through = !last || follow || must_be_directory;
                    let target = match found.map(|id| self.node(id)).transpose()? {
                        Some(Node { content: Content::Link(target), .. }) if through => {
                            Some(target)
                        }
                        _ => None,
                    };
                    if let Some(target) = target {
                        links += 1;
                        refuse!(links > MAX_LINKS, ELOOP);
                        let slash = if must_be_directory { "/" } else { "" };
                        rest = alloc::format!("{target}{slash}{after}");
                        continue;
                    }
                    // Without the second: mkdir("new/").
                    if last && (!must_be_directory || found.is_none()) {
                        return Ok((at, Some(String::from(part))));
                    }
                    at = found.ok_or(Error::ENOENT)?;
                    self.names(at)?;
                }
            }
            rest = String::from(after.trim_start_matches('/'));
        }
    }

    /// The directory to change and the name in it. Slashes at the end are no part of the name.
    fn place(&self, base: NodeId, path: &str) -> Result<(NodeId, String)> {
        let trimmed = path.trim_end_matches('/');
        let path = if trimmed.is_empty() { path } else { trimmed };
        let (parent, name) = self.resolve(base, path, false)?;
        self.names(parent)?;
        Ok((parent, name.ok_or(Error::EEXIST)?))
    }

    /// A place where there is nothing yet.
    fn new_place(&self, base: NodeId, path: &str) -> Result<(NodeId, String)> {
        let (parent, name) = self.resolve(base, path, false)?;
        let name = name.ok_or(Error::EEXIST)?;
        refuse!(self.names(parent)?.contains_key(&name), EEXIST);
        self.check_writable(parent)?;
        Ok((parent, name))
    }

    /// A directory that was removed but is still open takes no names: nothing would lead to them.
    fn check_writable(&self, directory: NodeId) -> Result<()> {
        let node = self.node(directory)?;
        refuse!(node.links == 0, ENOENT);
        node.writable.then_some(()).ok_or(Error::EROFS)
    }

    /// Opens a directory for changes, making it where it is missing.
    pub fn make_writable(&mut self, path: &str) -> Result<NodeId> {
        let id = self.make_path(path)?;
        self.node_mut(id)?.writable = true;
        Ok(id)
    }

    /// Makes a directory and those above it, of the system's own accord.
    pub fn make_path(&mut self, path: &str) -> Result<NodeId> {
        let mut at = ROOT;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            at = match self.lookup(at, part, true) {
                Ok(id) => id,
                Err(_) => self.insert(at, part, Node::new(NO_NAMES, 0o755, 0))?,
            };
        }
        Ok(at)
    }

    /// Puts a file in place, of the system's own accord, over what was there.
    pub fn put(&mut self, path: &str, data: &[u8], permissions: u32) -> Result<()> {
        let (parent, name) = path.rsplit_once('/').ok_or(Error::EINVAL)?;
        let parent = self.make_path(parent)?;
        let id = match self.names(parent)?.get(name) {
            Some(id) => *id,
            None => self.insert(parent, name, Node::new(NO_BYTES, permissions, (self.clock)()))?,
        };
        self.truncate(id, 0)?;
        self.write_at(id, 0, data).map(|_| ())
    }

    pub fn put_device(&mut self, path: &str, device: Device) -> Result<()> {
        let (parent, name) = path.rsplit_once('/').ok_or(Error::EINVAL)?;
        let parent = self.make_path(parent)?;
        self.insert(parent, name, Node::new(Content::Device(device), 0o666, 0)).map(|_| ())
    }

    /// Makes an empty file; one that is there already is the answer too, unless it must be `new`.
    pub fn create(&mut self, base: NodeId, path: &str, new: bool, mode: u32) -> Result<NodeId> {
        let (parent, name) = self.resolve(base, path, !new)?;
        let Some(name) = name.filter(|_| !path.ends_with('/')) else {
            return Err(if new { Error::EEXIST } else { Error::EISDIR });
        };
        match self.names(parent)?.get(&name) {
            Some(_) if new => Err(Error::EEXIST),
            Some(id) => Ok(*id),
            None => self.add((parent, name), NO_BYTES, mode),
        }
    }

    pub fn mkdir(&mut self, base: NodeId, path: &str, permissions: u32) -> Result<()> {
        self.add(self.new_place(base, path)?, NO_NAMES, permissions).map(|_| ())
    }

    pub fn symlink(&mut self, base: NodeId, path: &str, target: &str) -> Result<()> {
        refuse!(target.is_empty(), ENOENT);
        refuse!(target.len() >= MAX_PATH, ENAMETOOLONG);
        let content = Content::Link(String::from(target));
        self.add(self.new_place(base, path)?, content, 0o777).map(|_| ())
    }

    pub fn readlink(&self, base: NodeId, path: &str) -> Result<String> {
        match &self.node(self.lookup(base, path, false)?)?.content {
            Content::Link(target) => Ok(target.clone()),
            _ => Err(Error::EINVAL),
        }
    }

    /// A second name for a file.
    pub fn link(&mut self, base: NodeId, old: &str, new: &str) -> Result<()> {
        let id = self.lookup(base, old, false)?;
        let (parent, name) = self.new_place(base, new)?;
        match self.node(id)?.content {
            Content::Memory { .. } | Content::Link(_) => {}
            Content::Directory(_) => return Err(Error::EPERM),
            _ => return Err(Error::EROFS),
        }
        self.node_mut(id)?.links += 1;
        self.attach(parent, &name, id, (self.clock)())
    }

    pub fn unlink(&mut self, base: NodeId, path: &str) -> Result<()> {
        let (parent, name) = self.resolve(base, path, false)?;
        let name = name.ok_or(Error::EISDIR)?;
        let id = *self.names(parent)?.get(&name).ok_or(Error::ENOENT)?;
        refuse!(self.kind(id)? == Kind::Directory, EISDIR);
        self.check_writable(parent)?;
        self.remove(parent, &name)
    }

    pub fn rmdir(&mut self, base: NodeId, path: &str) -> Result<()> {
        let place = self.place(base, path);
        let (parent, name) =
            place.map_err(|e| if e == Error::EEXIST { Error::EINVAL } else { e })?;
        let id = *self.names(parent)?.get(&name).ok_or(Error::ENOENT)?;
        refuse!(!self.names(id)?.is_empty(), ENOTEMPTY);
        self.check_writable(parent)?;
        self.remove(parent, &name)
    }

    pub fn rename(&mut self, base: NodeId, old: &str, new: &str) -> Result<()> {
        let (old_parent, old_name) = self.place(base, old)?;
        let id = *self.names(old_parent)?.get(&old_name).ok_or(Error::ENOENT)?;
        let (new_parent, new_name) = self.place(base, new)?;
        let directory = self.kind(id)? == Kind::Directory;
        refuse!(!directory && (new.ends_with('/') || old.ends_with('/')), ENOTDIR);
        self.check_writable(old_parent)?;
        self.check_writable(new_parent)?;
        // A directory must not become its own descendant.
        let mut at = new_parent;
        while directory && at != ROOT {
            refuse!(at == id, EINVAL);
            at = self.node(at)?.parent;
        }
        if let Some(&target) = self.names(new_parent)?.get(&new_name) {
            if target == id {
                return Ok(());
            }
            match (directory, self.kind(target)? == Kind::Directory) {
                (true, false) => return Err(Error::ENOTDIR),
                (false, true) => return Err(Error::EISDIR),
                (true, true) => refuse!(!self.names(target)?.is_empty(), ENOTEMPTY),
                (false, false) => {}
            }
            self.remove(new_parent, &new_name)?;
        }
        self.detach(old_parent, &old_name)?;
        self.attach(new_parent, &new_name, id, (self.clock)())
    }

    /// Keeps a node while a descriptor names it.
    pub fn retain(&mut self, id: NodeId) {
        let _ = self.node_mut(id).map(|node| node.opens += 1);
    }

    pub fn release(&mut self, id: NodeId) {
        let _ = self.node_mut(id).map(|node| node.opens -= 1);
        self.collect(id);
    }

    fn collect(&mut self, id: NodeId) {
        if self.node(id).is_ok_and(|node| node.links == 0 && node.opens == 0) {
            if let Some(Node { content: Content::Memory { pages, .. }, .. }) =
                self.nodes[id.0 as usize].take()
            {
                self.used -= pages.len() as u64 * PAGE;
            }
            self.free.push(id.0);
        }
    }

    pub fn kind(&self, id: NodeId) -> Result<Kind> {
        Ok(match &self.node(id)?.content {
            Content::Directory(_) => Kind::Directory,
            Content::Image(_) | Content::Memory { .. } => Kind::File,
            Content::Link(_) => Kind::Link,
            Content::Device(device) => Kind::Device(*device),
        })
    }

    pub fn stat(&self, id: NodeId) -> Result<Stat> {
        let node = self.node(id)?;
        let (kind, size, pages) = match &node.content {
            Content::Directory(names) => (0o040_000, 64 + 32 * names.len() as u64, 0),
            Content::Image(data) => {
                (0o100_000, data.len() as u64, (data.len() as u64).div_ceil(PAGE))
            }
            Content::Memory { pages, size } => (0o100_000, *size, pages.len() as u64),
            Content::Link(target) => (0o120_000, target.len() as u64, 0),
            Content::Device(_) => (0o020_000, 0, 0),
        };
        Ok(Stat {
            inode: u64::from(id.0) + 1,
            mode: kind | node.permissions,
            links: node.links,
            size,
            blocks: pages * (PAGE / 512),
            changed_ns: node.changed_ns,
        })
    }

    /// Whether the owner may read and write.
    pub fn access(&self, id: NodeId) -> Result<(bool, bool)> {
        let node = self.node(id)?;
        let fixed = matches!(node.content, Content::Image(_));
        let frozen = matches!(node.content, Content::Directory(_)) && !node.writable;
        let write = node.permissions & 0o200 != 0 && !fixed && !frozen;
        Ok((node.permissions & 0o400 != 0, write))
    }

    fn changeable(&mut self, id: NodeId) -> Result<&mut Node> {
        let node = self.node_mut(id)?;
        let fixed = matches!(node.content, Content::Image(_)) || !node.writable;
        Some(node).filter(|_| !fixed).ok_or(Error::EROFS)
    }

    pub fn chmod(&mut self, id: NodeId, permissions: u32) -> Result<()> {
        self.changeable(id)?.permissions = permissions & 0o7777;
        Ok(())
    }

    pub fn set_time(&mut self, id: NodeId, changed_ns: u64) -> Result<()> {
        self.changeable(id)?.changed_ns = changed_ns;
        Ok(())
    }

    /// The name at `position`; `.` and `..` come first.
    pub fn entry(&self, id: NodeId, position: usize) -> Result<Option<Entry>> {
        let names = self.names(id)?;
        let (name, node) = match position {
            0 => (".", id),
            1 => ("..", self.node(id)?.parent),
            _ => match names.iter().nth(position - 2) {
                Some((name, node)) => (name.as_str(), *node),
                None => return Ok(None),
            },
        };
        let (name, kind) = (String::from(name), self.kind(node)?);
        Ok(Some(Entry { name, inode: u64::from(node.0) + 1, kind }))
    }

    /// The absolute path of a directory.
    pub fn path_of(&self, id: NodeId) -> Result<String> {
        let mut parts: Vec<&str> = Vec::new();
        let mut at = id;
        while at != ROOT {
            let parent = self.node(at)?.parent;
            let names = self.names(parent)?;
            let name = names.iter().find(|(_, node)| **node == at).ok_or(Error::ENOENT)?.0;
            parts.push(name);
            at = parent;
        }
        parts.reverse();
        Ok(alloc::format!("/{}", parts.join("/")))
    }

    /// The bytes of a file of the root image, to be mapped.
    pub fn image_data(&self, id: NodeId) -> Option<&'static [u8]> {
        match self.node(id).ok()?.content {
            Content::Image(data) => Some(data),
            _ => None,
        }
    }

    pub fn read_at(&self, id: NodeId, offset: u64, out: &mut [u8]) -> Result<usize> {
        match &self.node(id)?.content {
            Content::Image(data) => {
                let rest = data.get(offset as usize..).unwrap_or(&[]);
                let length = rest.len().min(out.len());
                out[..length].copy_from_slice(&rest[..length]);
                Ok(length)
            }
            Content::Memory { pages, size } => {
                let length = size.saturating_sub(offset).min(out.len() as u64) as usize;
                let mut done = 0;
                while done < length {
                    let at = offset + done as u64;
                    let within = (at % PAGE) as usize;
                    let part = (PAGE as usize - within).min(length - done);
                    let target = &mut out[done..done + part];
                    match pages.get(&(at / PAGE)) {
                        Some(page) => target.copy_from_slice(&page[within..within + part]),
                        None => target.fill(0),
                    }
                    done += part;
                }
                Ok(length)
            }
            Content::Directory(_) => Err(Error::EISDIR),
            _ => Err(Error::EINVAL),
        }
    }

    /// The bytes written: fewer where the memory for files ends.
    pub fn write_at(&mut self, id: NodeId, offset: u64, data: &[u8]) -> Result<usize> {
        let (used, now_ns) = (self.used, (self.clock)());
        let node = self.node_mut(id)?;
        let Content::Memory { pages, size } = &mut node.content else {
            return Err(Error::EROFS);
        };
        let end = offset.checked_add(data.len() as u64).filter(|e| *e <= MAX_FILE);
        end.ok_or(Error::EINVAL)?;
        let (mut done, mut grown) = (0, 0);
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let part = (PAGE as usize - within).min(data.len() - done);
            let page = match pages.entry(at / PAGE) {
                Slot::Occupied(page) => page.into_mut(),
                Slot::Vacant(_) if used + grown + PAGE > MAX_MEMORY => break,
                Slot::Vacant(place) => {
                    grown += PAGE;
                    place.insert(Box::new([0; PAGE as usize]))
                }
            };
            page[within..within + part].copy_from_slice(&data[done..done + part]);
            done += part;
        }
        if done > 0 {
            *size = (*size).max(offset + done as u64);
            node.changed_ns = now_ns;
        }
        self.used += grown;
        refuse!(done == 0 && !data.is_empty(), ENOSPC);
        Ok(done)
    }

    pub fn truncate(&mut self, id: NodeId, length: u64) -> Result<()> {
        let now_ns = (self.clock)();
        refuse!(length > MAX_FILE, EINVAL);
        let node = self.node_mut(id)?;
        let Content::Memory { pages, size } = &mut node.content else {
            return Err(Error::EROFS);
        };
        let before = pages.len();
        if length < *size {
            pages.split_off(&length.div_ceil(PAGE));
            if let Some(page) = pages.get_mut(&(length / PAGE)) {
                page[(length % PAGE) as usize..].fill(0);
            }
        }
        *size = length;
        node.changed_ns = now_ns;
        let freed = (before - pages.len()) as u64 * PAGE;
        self.used -= freed;
        Ok(())
    }
}
