use super::*;

#[test]
fn level_triggered_stays_while_ready() {
    let mut epoll = Epoll::new();
    epoll.add(7, 3, IN, 99).unwrap();
    assert_eq!(epoll.collect(8, &mut |_| IN | OUT), [(IN, 99)]);
    assert_eq!(epoll.collect(8, &mut |_| IN), [(IN, 99)]);
    assert!(epoll.collect(8, &mut |_| 0).is_empty());
    assert!(!epoll.may_be_ready());
    assert!(epoll.notify(7));
    assert_eq!(epoll.collect(8, &mut |_| IN), [(IN, 99)]);
}

#[test]
fn edge_triggered_is_told_once_for_each_notice() {
    let mut epoll = Epoll::new();
    epoll.add(7, 3, IN | EDGE, 1).unwrap();
    assert_eq!(epoll.collect(8, &mut |_| IN), [(IN, 1)]);
    assert!(epoll.collect(8, &mut |_| IN).is_empty());
    epoll.notify(7);
    epoll.notify(7);
    assert_eq!(epoll.collect(8, &mut |_| IN), [(IN, 1)]);
    assert!(epoll.collect(8, &mut |_| IN).is_empty());
}

#[test]
fn one_shot_waits_to_be_armed() {
    let mut epoll = Epoll::new();
    epoll.add(7, 3, IN | ONESHOT, 1).unwrap();
    assert_eq!(epoll.collect(8, &mut |_| IN), [(IN, 1)]);
    assert!(!epoll.notify(7));
    assert!(epoll.collect(8, &mut |_| IN | HUP).is_empty());
    epoll.modify(7, 3, IN | ONESHOT, 2).unwrap();
    assert_eq!(epoll.collect(8, &mut |_| IN), [(IN, 2)]);
}

#[test]
fn errors_are_told_unasked_and_the_limit_rotates() {
    let mut epoll = Epoll::new();
    for fd in 0..4 {
        epoll.add(fd as u64, fd, OUT, fd as u64).unwrap();
    }
    assert_eq!(epoll.add(0, 0, IN, 0), Err(Error::EEXIST));
    assert_eq!(epoll.collect(2, &mut |_| ERR), [(ERR, 0), (ERR, 1)]);
    assert_eq!(epoll.collect(2, &mut |_| ERR), [(ERR, 2), (ERR, 3)]);
    epoll.remove_object(1);
    assert_eq!(epoll.collect(9, &mut |_| HUP).len(), 3);
    assert_eq!(epoll.remove(1, 1), Err(Error::ENOENT));
}
