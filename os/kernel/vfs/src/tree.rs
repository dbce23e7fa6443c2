//! Directories, files, links and devices by number.

use crate::*;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Link,
    Device(Device),
}

struct Node {
    content: Content,
    permissions: u32,
    links: u32,
    opens: u32,
    changed_ns: u64,
    parent: NodeId,
    /// Of a directory: whether its list of names may change.
    writable: bool,
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
}

impl Tree {
    /// A tree with nothing but its root.
    pub fn new() -> Tree {
        let root = Node {
            content: Content::Directory(BTreeMap::new()),
            permissions: 0o755,
            links: 2,
            opens: 1,
            changed_ns: 0,
            parent: ROOT,
            writable: false,
        };
        Tree { nodes: alloc::vec![Some(root)], free: Vec::new(), used: 0 }
    }

    /// Bytes that files in memory take, and how many nodes there are.
    pub fn usage(&self) -> (u64, usize) {
        (self.used, self.nodes.len() - self.free.len())
    }

    fn node(&self, id: NodeId) -> Result<&Node, Error> {
        self.nodes.get(id.0 as usize).and_then(|n| n.as_ref()).ok_or(Error::ENOENT)
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, Error> {
        self.nodes.get_mut(id.0 as usize).and_then(|n| n.as_mut()).ok_or(Error::ENOENT)
    }

    fn names(&self, id: NodeId) -> Result<&BTreeMap<String, NodeId>, Error> {
        match &self.node(id)?.content {
            Content::Directory(names) => Ok(names),
            _ => Err(Error::ENOTDIR),
        }
    }

    fn names_mut(&mut self, id: NodeId) -> Result<&mut BTreeMap<String, NodeId>, Error> {
        match &mut self.node_mut(id)?.content {
            Content::Directory(names) => Ok(names),
            _ => Err(Error::ENOTDIR),
        }
    }

    /// Puts a node under a name, without asking whether the directory is writable.
    pub(crate) fn insert(
        &mut self,
        parent: NodeId,
        name: &str,
        content: Content,
        permissions: u32,
        now_ns: u64,
    ) -> Result<NodeId, Error> {
        if name.is_empty() || name == "." || name == ".." {
            return Err(Error::EEXIST);
        }
        if name.len() > MAX_NAME {
            return Err(Error::ENAMETOOLONG);
        }
        if self.names(parent)?.contains_key(name) {
            return Err(Error::EEXIST);
        }
        if self.nodes.len() - self.free.len() >= MAX_NODES {
            return Err(Error::ENOSPC);
        }
        let directory = matches!(content, Content::Directory(_));
        let writable = self.node(parent)?.writable;
        let links = if directory { 2 } else { 1 };
        let node =
            Node { content, permissions, links, opens: 0, changed_ns: now_ns, parent, writable };
        let id = match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = Some(node);
                NodeId(index)
            }
            None => {
                self.nodes.push(Some(node));
                NodeId(self.nodes.len() as u32 - 1)
            }
        };
        self.names_mut(parent)?.insert(String::from(name), id);
        let parent = self.node_mut(parent)?;
        parent.changed_ns = now_ns;
        parent.links += u32::from(directory);
        Ok(id)
    }

    /// The node that `path` names, from `base` where it is relative.
    pub fn lookup(&self, base: NodeId, path: &str, follow: bool) -> Result<NodeId, Error> {
        let (parent, name) = self.resolve(base, path, follow)?;
        match name {
            None => Ok(parent),
            Some(name) => self.names(parent)?.get(&name).copied().ok_or(Error::ENOENT),
        }
    }

    /// The directory that holds the last part of `path`, and that part; `None` where the path
    /// ends in the directory itself. Links on the way are followed, the last one where `follow`.
    fn resolve(
        &self,
        base: NodeId,
        path: &str,
        follow: bool,
    ) -> Result<(NodeId, Option<String>), Error> {
        if path.is_empty() {
            return Err(Error::ENOENT);
        }
        let mut rest = String::from(path);
        let mut at = base;
        let mut links = 0;
        loop {
            if rest.len() > MAX_PATH {
                return Err(Error::ENAMETOOLONG);
            }
            if rest.starts_with('/') {
                at = ROOT;
            }
            let trimmed = rest.trim_start_matches('/');
            let (part, after) = trimmed.split_once('/').unwrap_or((trimmed, ""));
            let must_be_directory = trimmed.len() > part.len();
            let last = after.trim_matches('/').is_empty();
            if part.len() > MAX_NAME {
                return Err(Error::ENAMETOOLONG);
            }
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
                    let target = match found.map(|id| self.node(id)).transpose()? {
                        Some(Node { content: Content::Link(target), .. })
                            if !last || follow || must_be_directory =>
                        {
                            Some(target)
                        }
                        _ => None,
                    };
                    if let Some(target) = target {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Error::ELOOP);
                        }
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

    /// The directory to change and the name in it, where the directory may be changed.
    fn place(&self, base: NodeId, path: &str) -> Result<(NodeId, String), Error> {
        let (parent, name) = self.resolve(base, path, false)?;
        let name = name.ok_or(Error::EEXIST)?;
        self.names(parent)?;
        Ok((parent, name))
    }

    /// A place where there is nothing yet.
    fn new_place(&self, base: NodeId, path: &str) -> Result<(NodeId, String), Error> {
        let (parent, name) = self.place(base, path)?;
        if self.names(parent)?.contains_key(&name) {
            return Err(Error::EEXIST);
        }
        self.check_writable(parent)?;
        Ok((parent, name))
    }

    fn check_writable(&self, directory: NodeId) -> Result<(), Error> {
        self.node(directory)?.writable.then_some(()).ok_or(Error::EROFS)
    }

    /// Opens a directory for changes, making it where it is missing.
    pub fn make_writable(&mut self, path: &str) -> Result<NodeId, Error> {
        let id = self.make_path(path)?;
        self.node_mut(id)?.writable = true;
        Ok(id)
    }

    /// Makes a directory and those above it, of the system's own accord.
    pub fn make_path(&mut self, path: &str) -> Result<NodeId, Error> {
        let mut at = ROOT;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            at = match self.lookup(at, part, true) {
                Ok(id) => id,
                Err(_) => self.insert(at, part, Content::Directory(BTreeMap::new()), 0o755, 0)?,
            };
        }
        Ok(at)
    }

    /// Puts a file in place, of the system's own accord, over what was there.
    pub fn put(
        &mut self,
        path: &str,
        data: &[u8],
        permissions: u32,
        now: u64,
    ) -> Result<(), Error> {
        let (parent, name) = path.rsplit_once('/').ok_or(Error::EINVAL)?;
        let parent = self.make_path(parent)?;
        let id = match self.names(parent)?.get(name) {
            Some(id) => *id,
            None => {
                let content = Content::Memory { pages: BTreeMap::new(), size: 0 };
                self.insert(parent, name, content, permissions, now)?
            }
        };
        self.truncate(id, 0, now)?;
        self.write_at(id, 0, data, now)?;
        Ok(())
    }

    pub fn put_device(&mut self, path: &str, device: Device) -> Result<(), Error> {
        let (parent, name) = path.rsplit_once('/').ok_or(Error::EINVAL)?;
        let parent = self.make_path(parent)?;
        self.insert(parent, name, Content::Device(device), 0o666, 0).map(|_| ())
    }

    /// Makes an empty file; with `exclusive` it must not be there yet.
    pub fn create(
        &mut self,
        base: NodeId,
        path: &str,
        exclusive: bool,
        permissions: u32,
        now_ns: u64,
    ) -> Result<NodeId, Error> {
        let (parent, name) = self.resolve(base, path, !exclusive)?;
        let Some(name) = name.filter(|_| !path.ends_with('/')) else {
            return Err(if exclusive { Error::EEXIST } else { Error::EISDIR });
        };
        match self.names(parent)?.get(&name) {
            Some(_) if exclusive => Err(Error::EEXIST),
            Some(id) => Ok(*id),
            None => {
                self.check_writable(parent)?;
                let content = Content::Memory { pages: BTreeMap::new(), size: 0 };
                self.insert(parent, &name, content, permissions & 0o7777, now_ns)
            }
        }
    }

    pub fn mkdir(
        &mut self,
        base: NodeId,
        path: &str,
        permissions: u32,
        now_ns: u64,
    ) -> Result<(), Error> {
        let (parent, name) = self.new_place(base, path)?;
        let content = Content::Directory(BTreeMap::new());
        self.insert(parent, &name, content, permissions & 0o7777, now_ns).map(|_| ())
    }

    pub fn symlink(
        &mut self,
        base: NodeId,
        path: &str,
        target: &str,
        now_ns: u64,
    ) -> Result<(), Error> {
        if target.is_empty() || target.len() >= MAX_PATH {
            return Err(if target.is_empty() { Error::ENOENT } else { Error::ENAMETOOLONG });
        }
        let (parent, name) = self.new_place(base, path)?;
        self.insert(parent, &name, Content::Link(String::from(target)), 0o777, now_ns).map(|_| ())
    }

    pub fn readlink(&self, base: NodeId, path: &str) -> Result<String, Error> {
        match &self.node(self.lookup(base, path, false)?)?.content {
            Content::Link(target) => Ok(target.clone()),
            _ => Err(Error::EINVAL),
        }
    }

    /// A second name for a file.
    pub fn link(&mut self, base: NodeId, old: &str, new: &str, now_ns: u64) -> Result<(), Error> {
        let id = self.lookup(base, old, false)?;
        let (parent, name) = self.new_place(base, new)?;
        match self.node(id)?.content {
            Content::Memory { .. } | Content::Link(_) => {}
            Content::Directory(_) => return Err(Error::EPERM),
            _ => return Err(Error::EROFS),
        }
        self.names_mut(parent)?.insert(name, id);
        self.node_mut(id)?.links += 1;
        self.node_mut(parent)?.changed_ns = now_ns;
        Ok(())
    }

    pub fn unlink(&mut self, base: NodeId, path: &str, now_ns: u64) -> Result<(), Error> {
        let (parent, name) = self.resolve(base, path, false)?;
        let name = name.ok_or(Error::EISDIR)?;
        let id = *self.names(parent)?.get(&name).ok_or(Error::ENOENT)?;
        if self.kind(id)? == Kind::Directory {
            return Err(Error::EISDIR);
        }
        self.check_writable(parent)?;
        self.names_mut(parent)?.remove(&name);
        self.node_mut(parent)?.changed_ns = now_ns;
        self.node_mut(id)?.links -= 1;
        self.collect(id);
        Ok(())
    }

    pub fn rmdir(&mut self, base: NodeId, path: &str, now_ns: u64) -> Result<(), Error> {
        let trimmed = path.trim_end_matches('/');
        let (parent, name) =
            self.resolve(base, if trimmed.is_empty() { path } else { trimmed }, false)?;
        let name = name.ok_or(Error::EINVAL)?;
        let id = *self.names(parent)?.get(&name).ok_or(Error::ENOENT)?;
        if !self.names(id)?.is_empty() {
            return Err(Error::ENOTEMPTY);
        }
        self.check_writable(parent)?;
        self.names_mut(parent)?.remove(&name);
        let directory = self.node_mut(parent)?;
        directory.changed_ns = now_ns;
        directory.links -= 1;
        self.node_mut(id)?.links = 0;
        self.collect(id);
        Ok(())
    }

    pub fn rename(&mut self, base: NodeId, old: &str, new: &str, now_ns: u64) -> Result<(), Error> {
        let trim = |path: &str| {
            let trimmed = path.trim_end_matches('/');
            String::from(if trimmed.is_empty() { path } else { trimmed })
        };
        let (old_parent, old_name) = self.place(base, &trim(old))?;
        let id = *self.names(old_parent)?.get(&old_name).ok_or(Error::ENOENT)?;
        let (new_parent, new_name) = self.place(base, &trim(new))?;
        let directory = self.kind(id)? == Kind::Directory;
        if new_name.len() > MAX_NAME {
            return Err(Error::ENAMETOOLONG);
        }
        if !directory && (new.ends_with('/') || old.ends_with('/')) {
            return Err(Error::ENOTDIR);
        }
        self.check_writable(old_parent)?;
        self.check_writable(new_parent)?;
        // A directory must not become its own descendant.
        let mut at = new_parent;
        while directory && at != ROOT {
            if at == id {
                return Err(Error::EINVAL);
            }
            at = self.node(at)?.parent;
        }
        if let Some(&target) = self.names(new_parent)?.get(&new_name) {
            if target == id {
                return Ok(());
            }
            match (directory, self.kind(target)? == Kind::Directory) {
                (true, false) => return Err(Error::ENOTDIR),
                (false, true) => return Err(Error::EISDIR),
                (true, true) => {
                    if !self.names(target)?.is_empty() {
                        return Err(Error::ENOTEMPTY);
                    }
                    self.node_mut(target)?.links = 0;
                    self.node_mut(new_parent)?.links -= 1;
                }
                (false, false) => self.node_mut(target)?.links -= 1,
            }
            self.names_mut(new_parent)?.remove(&new_name);
            self.collect(target);
        }
        self.names_mut(old_parent)?.remove(&old_name);
        self.names_mut(new_parent)?.insert(new_name, id);
        if directory {
            self.node_mut(old_parent)?.links -= 1;
            self.node_mut(new_parent)?.links += 1;
        }
        self.node_mut(id)?.parent = new_parent;
        self.node_mut(old_parent)?.changed_ns = now_ns;
        self.node_mut(new_parent)?.changed_ns = now_ns;
        Ok(())
    }

    /// Keeps a node while a descriptor names it.
    pub fn retain(&mut self, id: NodeId) {
        if let Ok(node) = self.node_mut(id) {
            node.opens += 1;
        }
    }

    pub fn release(&mut self, id: NodeId) {
        if let Ok(node) = self.node_mut(id) {
            node.opens -= 1;
        }
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

    pub fn kind(&self, id: NodeId) -> Result<Kind, Error> {
        Ok(match &self.node(id)?.content {
            Content::Directory(_) => Kind::Directory,
            Content::Image(_) | Content::Memory { .. } => Kind::File,
            Content::Link(_) => Kind::Link,
            Content::Device(device) => Kind::Device(*device),
        })
    }

    pub fn stat(&self, id: NodeId) -> Result<Stat, Error> {
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
    pub fn access(&self, id: NodeId) -> Result<(bool, bool), Error> {
        let node = self.node(id)?;
        let fixed = matches!(node.content, Content::Image(_));
        let frozen = matches!(node.content, Content::Directory(_)) && !node.writable;
        let write = node.permissions & 0o200 != 0 && !fixed && !frozen;
        Ok((node.permissions & 0o400 != 0, write))
    }

    fn changeable(&mut self, id: NodeId) -> Result<&mut Node, Error> {
        let node = self.node_mut(id)?;
        let fixed = matches!(node.content, Content::Image(_)) || !node.writable;
        Some(node).filter(|_| !fixed).ok_or(Error::EROFS)
    }

    pub fn chmod(&mut self, id: NodeId, permissions: u32) -> Result<(), Error> {
        self.changeable(id)?.permissions = permissions & 0o7777;
        Ok(())
    }

    pub fn set_time(&mut self, id: NodeId, changed_ns: u64) -> Result<(), Error> {
        self.changeable(id)?.changed_ns = changed_ns;
        Ok(())
    }

    /// The name at `position`; `.` and `..` come first.
    pub fn entry(&self, id: NodeId, position: usize) -> Result<Option<Entry>, Error> {
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
    pub fn path_of(&self, id: NodeId) -> Result<String, Error> {
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

    pub fn read_at(&self, id: NodeId, offset: u64, out: &mut [u8]) -> Result<usize, Error> {
        let size = match &self.node(id)?.content {
            Content::Image(data) => data.len() as u64,
            Content::Memory { size, .. } => *size,
            Content::Directory(_) => return Err(Error::EISDIR),
            _ => return Err(Error::EINVAL),
        };
        let length = size.saturating_sub(offset).min(out.len() as u64) as usize;
        match &self.node(id)?.content {
            Content::Memory { pages, .. } => {
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
            }
            Content::Image(data) if length > 0 => {
                out[..length].copy_from_slice(&data[offset as usize..offset as usize + length]);
            }
            _ => {}
        }
        Ok(length)
    }

    pub fn write_at(
        &mut self,
        id: NodeId,
        offset: u64,
        data: &[u8],
        now_ns: u64,
    ) -> Result<usize, Error> {
        let used = self.used;
        let node = self.node_mut(id)?;
        let Content::Memory { pages, size } = &mut node.content else {
            return Err(Error::EROFS);
        };
        let end = offset.checked_add(data.len() as u64).filter(|e| *e <= MAX_FILE);
        let end = end.ok_or(Error::EINVAL)?;
        let before = pages.len();
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let part = (PAGE as usize - within).min(data.len() - done);
            if !pages.contains_key(&(at / PAGE)) {
                if used + (pages.len() - before + 1) as u64 * PAGE > MAX_MEMORY {
                    break;
                }
                pages.insert(at / PAGE, Box::new([0; PAGE as usize]));
            }
            if let Some(page) = pages.get_mut(&(at / PAGE)) {
                page[within..within + part].copy_from_slice(&data[done..done + part]);
            }
            done += part;
        }
        if done > 0 {
            *size = (*size).max((offset + done as u64).min(end));
            node.changed_ns = now_ns;
        }
        let grown = (pages.len() - before) as u64 * PAGE;
        self.used += grown;
        if done == 0 && !data.is_empty() {
            return Err(Error::ENOSPC);
        }
        Ok(done)
    }

    pub fn truncate(&mut self, id: NodeId, length: u64, now_ns: u64) -> Result<(), Error> {
        if length > MAX_FILE {
            return Err(Error::EINVAL);
        }
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
