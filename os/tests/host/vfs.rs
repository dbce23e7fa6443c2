use super::*;

fn tree() -> Tree {
    let mut tree = Tree::new(|| 0);
    tree.make_writable("/tmp").unwrap();
    tree
}

#[test]
fn files_hold_what_was_written_with_holes_of_zeros() {
    let mut tree = tree();
    let id = tree.create(ROOT, "/tmp/a", true, 0o644).unwrap();
    assert_eq!(tree.create(ROOT, "/tmp/a", true, 0o644), Err(Error::EEXIST));
    assert_eq!(tree.write_at(id, 10_000, b"end"), Ok(3));
    let mut buffer = vec![1; 20_000];
    assert_eq!(tree.read_at(id, 0, &mut buffer), Ok(10_003));
    assert!(buffer[..10_000].iter().all(|b| *b == 0));
    assert_eq!(&buffer[10_000..10_003], b"end");
    tree.truncate(id, 10_001).unwrap();
    tree.truncate(id, 10_003).unwrap();
    assert_eq!(tree.read_at(id, 10_000, &mut buffer), Ok(3));
    assert_eq!(&buffer[..3], b"e\0\0");
    assert_eq!(tree.stat(id).unwrap().size, 10_003);
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let mut tree = tree();
    let nodes = tree.usage();
    let id = tree.create(ROOT, "/tmp/a", true, 0o644).unwrap();
    tree.retain(id);
    tree.write_at(id, 0, &[1; 9000]).unwrap();
    tree.unlink(ROOT, "/tmp/a").unwrap();
    assert_eq!(tree.lookup(ROOT, "/tmp/a", true), Err(Error::ENOENT));
    assert_eq!(tree.read_at(id, 0, &mut [0; 5]), Ok(5));
    tree.release(id);
    assert_eq!(tree.usage(), nodes);
}

#[test]
fn paths_follow_links_and_stop_at_circles() {
    let mut tree = tree();
    tree.mkdir(ROOT, "/tmp/d", 0o755).unwrap();
    tree.create(ROOT, "/tmp/d/f", true, 0o644).unwrap();
    tree.symlink(ROOT, "/tmp/l", "d").unwrap();
    tree.symlink(ROOT, "/tmp/up", "../tmp/l/f").unwrap();
    let file = tree.lookup(ROOT, "/tmp/d/f", true).unwrap();
    assert_eq!(tree.lookup(ROOT, "/tmp/up", true), Ok(file));
    assert_eq!(tree.lookup(ROOT, "//tmp/./l/../d//f", true), Ok(file));
    assert_eq!(tree.lookup(ROOT, "/tmp/d/f/", true), Err(Error::ENOTDIR));
    tree.symlink(ROOT, "/tmp/x", "/tmp/y").unwrap();
    tree.symlink(ROOT, "/tmp/y", "x").unwrap();
    assert_eq!(tree.lookup(ROOT, "/tmp/x", true), Err(Error::ELOOP));
    assert!(tree.lookup(ROOT, "/tmp/x", false).is_ok());
    let d = tree.lookup(ROOT, "/tmp/d", true).unwrap();
    assert_eq!(tree.path_of(d).unwrap(), "/tmp/d");
}

#[test]
fn rename_replaces_and_refuses_its_own_inside() {
    let mut tree = tree();
    tree.mkdir(ROOT, "/tmp/a", 0o755).unwrap();
    tree.mkdir(ROOT, "/tmp/a/b", 0o755).unwrap();
    assert_eq!(tree.rename(ROOT, "/tmp/a", "/tmp/a/b/c"), Err(Error::EINVAL));
    tree.create(ROOT, "/tmp/f", true, 0o644).unwrap();
    tree.create(ROOT, "/tmp/g", true, 0o644).unwrap();
    let f = tree.lookup(ROOT, "/tmp/f", true).unwrap();
    tree.rename(ROOT, "/tmp/f", "/tmp/g").unwrap();
    assert_eq!(tree.lookup(ROOT, "/tmp/g", true), Ok(f));
    assert_eq!(tree.rename(ROOT, "/tmp/g", "/tmp/a"), Err(Error::EISDIR));
    assert_eq!(tree.rename(ROOT, "/tmp/a", "/tmp/g"), Err(Error::ENOTDIR));
    assert_eq!(tree.rmdir(ROOT, "/tmp/a"), Err(Error::ENOTEMPTY));
    tree.rmdir(ROOT, "/tmp/a/b").unwrap();
    tree.rmdir(ROOT, "/tmp/a/").unwrap();
}

#[test]
fn a_removed_directory_takes_no_names() {
    let mut tree = tree();
    let nodes = tree.usage();
    tree.mkdir(ROOT, "/tmp/d", 0o755).unwrap();
    tree.symlink(ROOT, "/tmp/f", "x").unwrap();
    let d = tree.lookup(ROOT, "/tmp/d", true).unwrap();
    tree.retain(d);
    tree.rmdir(ROOT, "/tmp/d").unwrap();
    assert_eq!(tree.create(d, "a", true, 0o644), Err(Error::ENOENT));
    assert_eq!(tree.mkdir(d, "a", 0o755), Err(Error::ENOENT));
    assert_eq!(tree.symlink(d, "a", "x"), Err(Error::ENOENT));
    assert_eq!(tree.link(d, "/tmp/f", "a"), Err(Error::ENOENT));
    assert_eq!(tree.rename(d, "/tmp/f", "a"), Err(Error::ENOENT));
    tree.unlink(ROOT, "/tmp/f").unwrap();
    tree.release(d);
    assert_eq!(tree.usage(), nodes);
}

#[test]
fn what_is_not_opened_for_changes_is_read_only() {
    let mut tree = tree();
    tree.make_path("/usr/lib").unwrap();
    assert_eq!(tree.create(ROOT, "/usr/lib/x", false, 0o644), Err(Error::EROFS));
    assert_eq!(tree.mkdir(ROOT, "/usr/x", 0o755), Err(Error::EROFS));
    assert_eq!(tree.mkdir(ROOT, "/usr", 0o755), Err(Error::EEXIST));
    assert_eq!(tree.rename(ROOT, "/tmp", "/usr/tmp"), Err(Error::EROFS));
    tree.put("/etc/hosts", b"127.0.0.1 localhost\n", 0o444).unwrap();
    assert_eq!(tree.unlink(ROOT, "/etc/hosts"), Err(Error::EROFS));
}

#[test]
fn damaged_images_are_refused() {
    assert_eq!(Tree::new(|| 0).load(b"short"), Err(Error::EINVAL));
    let mut image = vec![0u8; 8192];
    image[..8].copy_from_slice(b"O3ROOT01");
    image[8] = 1;
    image[16] = 72;
    image[24] = 2;
    image[72..74].copy_from_slice(b"/f");
    image[36] = 2;
    image[40..44].copy_from_slice(&0o100_644u32.to_le_bytes());
    image[49] = 16;
    image[56] = 5;
    let leaked: &'static [u8] = Box::leak(image.clone().into_boxed_slice());
    let mut tree = Tree::new(|| 0);
    tree.load(leaked).unwrap();
    let id = tree.lookup(ROOT, "/f", true).unwrap();
    assert_eq!(tree.image_data(id).unwrap().len(), 5);
    for at in 8..72 {
        let mut damaged = image.clone();
        damaged[at] = 0xff;
        let _ = Tree::new(|| 0).load(Box::leak(damaged.into_boxed_slice()));
    }
}

#[test]
fn streams_keep_order_and_small_writes_whole() {
    let mut stream = Stream::new();
    assert_eq!(stream.read(&mut [0; 4], false), Err(Error::EAGAIN));
    assert_eq!(stream.write(&[1; PIPE_CAPACITY - 100]), Ok(PIPE_CAPACITY - 100));
    assert_eq!(stream.write(&[2; 200]), Err(Error::EAGAIN));
    assert_eq!(stream.write(&[2; 5000]), Ok(100));
    let mut buffer = vec![0; PIPE_CAPACITY];
    assert_eq!(stream.read(&mut buffer, true), Ok(PIPE_CAPACITY));
    assert_eq!(stream.read(&mut buffer, false), Ok(PIPE_CAPACITY));
    assert_eq!((buffer[0], buffer[PIPE_CAPACITY - 1]), (1, 2));
    stream.writer_closed = true;
    assert_eq!(stream.read(&mut buffer, false), Ok(0));
    stream.reader_closed = true;
    assert_eq!(stream.write(b"x"), Err(Error::EPIPE));
}
