//! Calls on sockets.

use super::*;
use net::{Ipv4Addr, Kind, Shutdown, SocketAddrV4, SocketId, SocketOption, Stack};

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const SOCK_STREAM: u64 = 1;
const SOCK_DGRAM: u64 = 2;
const MSG_PEEK: u64 = 2;
const MSG_TRUNC: u32 = 0x20;
const MSG_DONTWAIT: u64 = 0x40;
const MSG_WAITALL: u64 = 0x100;
const MSG_NOSIGNAL: u64 = 0x4000;
const MSG_MORE: u64 = 0x8000;
const MSG_CLOEXEC: u64 = 0x4000_0000;
const ADDRESS_SIZE: usize = 16;
/// The largest datagram that the link carries whole.
const MAX_DATAGRAM: u64 = 1500;

fn socket_of(file: &File) -> Result<(SocketId, Kind), Errno> {
    match file.object {
        Object::Socket(id, kind) => Ok((id, kind)),
        _ => Err(Errno::ENOTSOCK),
    }
}

/// The open socket, or end of a socket pair, at a descriptor.
fn get(fd: u64) -> Result<Rc<File>, Errno> {
    let file = files::get(fd)?;
    refuse!(!matches!(file.object, Object::Socket(..) | Object::Pair(..)), ENOTSOCK);
    Ok(file)
}

fn read_address(at: u64, length: u64) -> Result<SocketAddrV4, Errno> {
    refuse!((length as u32 as usize) < ADDRESS_SIZE || length as i32 > 128, EINVAL);
    let mut bytes = [0; ADDRESS_SIZE];
    usercopy::read(at, &mut bytes)?;
    refuse!(u64::from(u16::from_le_bytes([bytes[0], bytes[1]])) != AF_INET, EAFNOSUPPORT);
    let ip = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
    Ok(SocketAddrV4::new(ip, u16::from_be_bytes([bytes[2], bytes[3]])))
}

/// Writes an address and its length, cut to what the program has room for.
fn write_address(at: u64, length_at: u64, address: Option<SocketAddrV4>) -> Result<(), Errno> {
    if at == 0 {
        return Ok(());
    }
    let mut bytes = [0; ADDRESS_SIZE];
    let bytes = match address {
        Some(address) => {
            bytes[..2].copy_from_slice(&(AF_INET as u16).to_le_bytes());
            bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
            bytes[4..8].copy_from_slice(&address.ip().octets());
            &bytes[..]
        }
        None => {
            bytes[0] = AF_UNIX as u8;
            &bytes[..2]
        }
    };
    let room = usercopy::read_u32(length_at)?;
    refuse!((room as i32) < 0, EINVAL);
    usercopy::write(at, &bytes[..bytes.len().min(room as usize)])?;
    usercopy::write_u32(length_at, bytes.len() as u32)
}

/// Limits: AF_INET, SOCK_STREAM and SOCK_DGRAM.
pub fn socket(_: &mut Frame, &[family, kind, protocol, ..]: &Args) -> Answer {
    refuse!(family != AF_INET, EAFNOSUPPORT);
    let stack_kind = match (kind & 15, protocol) {
        (SOCK_STREAM, 0 | 6) => Kind::Stream,
        (SOCK_DGRAM, 0 | 17) => Kind::Datagram,
        (SOCK_STREAM | SOCK_DGRAM, _) => return Err(Errno::EPROTONOSUPPORT),
        _ => return Err(Errno::EINVAL),
    };
    let (flags, close_on_exec) = files::making_flags(kind, 15)?;
    let id = network::with(|stack, _| stack.open(stack_kind))?;
    files::open(Object::Socket(id, stack_kind), files::O_RDWR | flags, close_on_exec)
}

/// Limits: AF_UNIX, SOCK_STREAM.
pub fn socketpair(_: &mut Frame, &[family, kind, protocol, at, ..]: &Args) -> Answer {
    if family != AF_UNIX {
        return Err(if family == AF_INET { Errno::EOPNOTSUPP } else { Errno::EAFNOSUPPORT });
    }
    refuse!(kind & 15 != SOCK_STREAM || protocol > 1, EPROTONOSUPPORT);
    let (flags, close_on_exec) = files::making_flags(kind, 15)?;
    io::install_two(File::pair(flags), close_on_exec, at)
}

pub fn bind(_: &mut Frame, &[fd, at, length, ..]: &Args) -> Answer {
    let (socket, _) = socket_of(&*files::get(fd)?)?;
    let address = read_address(at, length)?;
    network::with(|stack, _| stack.bind(socket, address)).map(|()| 0)
}

pub fn listen(_: &mut Frame, &[fd, backlog, ..]: &Args) -> Answer {
    let (socket, kind) = socket_of(&*files::get(fd)?)?;
    refuse!(kind != Kind::Stream, EOPNOTSUPP);
    let backlog = (backlog as i32).max(0) as usize;
    network::with(|stack, _| stack.listen(socket, backlog.max(1)))?;
    if let Some(local) = network::look(|stack| stack.local_address(socket)) {
        log!("listening on {}", local.port());
    }
    Ok(0)
}

pub fn accept4(_: &mut Frame, &[fd, at, length_at, flags, ..]: &Args) -> Answer {
    let (flags, close_on_exec) = files::making_flags(flags, 0)?;
    let file = files::get(fd)?;
    let (socket, kind) = socket_of(&file)?;
    refuse!(kind != Kind::Stream, EOPNOTSUPP);
    // Before a connection is taken that could not be kept.
    refuse!(files::count() >= files::MAX_DESCRIPTORS, EMFILE);
    let (id, peer) = sched::retry(Wait::Object(file.id), !file.nonblocking(), || {
        network::with(|stack, _| stack.accept(socket))
    })?;
    let accepted = files::new_file(Object::Socket(id, Kind::Stream), files::O_RDWR | flags);
    write_address(at, length_at, Some(peer))?;
    files::install(accepted, close_on_exec, 0)
}

pub fn connect(_: &mut Frame, &[fd, at, length, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    let (socket, _) = socket_of(&file)?;
    let address = read_address(at, length)?;
    match network::with(|stack, now| stack.connect(socket, address, now)) {
        Err(Errno::EINPROGRESS) => {}
        result => return result.map(|()| 0),
    }
    refuse!(file.nonblocking(), EINPROGRESS); // Even to ourselves, as Linux does.
    loop {
        let ready = network::look(|stack| stack.readiness(socket));
        if ready.error {
            let error = network::with(|stack, _| stack.take_error(socket));
            return error.map_or(Ok(0), Err);
        }
        if ready.writable {
            return Ok(0);
        }
        refuse!(sched::block(Wait::Object(file.id), None) == Woken::Signal, EINTR);
    }
}

pub fn shutdown(_: &mut Frame, &[fd, how, ..]: &Args) -> Answer {
    let file = files::get(fd)?;
    let how = match how {
        0 => Shutdown::Read,
        1 => Shutdown::Write,
        2 => Shutdown::Both,
        _ => return Err(Errno::EINVAL),
    };
    if let Object::Pair(input, output) = &file.object {
        for (stream, other) in [(input, Shutdown::Write), (output, Shutdown::Read)] {
            if how != other {
                let mut stream = stream.borrow_mut();
                (stream.reader_closed, stream.writer_closed) = (true, true);
            }
        }
        files::notify(file.peer.get());
        files::notify(file.id);
        return Ok(0);
    }
    let (socket, _) = socket_of(&file)?;
    network::with(|stack, _| stack.shutdown(socket, how)).map(|()| 0)
}

fn send_message(
    file: &Rc<File>,
    parts: &[(u64, u64)],
    flags: u64,
    target: Option<SocketAddrV4>,
) -> Answer {
    refuse!(flags & !(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE) != 0, EOPNOTSUPP);
    let nonblocking = file.nonblocking() || flags & MSG_DONTWAIT != 0;
    if let Object::Socket(socket, Kind::Datagram) = file.object {
        let mut data = Vec::new();
        for (at, length) in parts {
            let start = data.len();
            refuse!(start as u64 + length > MAX_DATAGRAM, EMSGSIZE);
            data.resize(start + *length as usize, 0);
            usercopy::read(*at, &mut data[start..])?;
        }
        let sent = network::with(|stack, now| stack.send_to(socket, &data, target, now));
        return sent.map(|n| n as u64).map_err(|error| match error {
            Errno::ENOTCONN => Errno::EDESTADDRREQ,
            error => error,
        });
    }
    refuse!(target.is_some(), EISCONN);
    io::write_parts(file, parts, None, nonblocking, flags & MSG_NOSIGNAL != 0)
}

/// The bytes received, and for a datagram its sender and whether it was cut.
fn receive_message(
    file: &Rc<File>,
    parts: &[(u64, u64)],
    flags: u64,
) -> Result<(u64, Option<SocketAddrV4>, bool), Errno> {
    let known = MSG_DONTWAIT | MSG_PEEK | MSG_WAITALL | MSG_NOSIGNAL | MSG_CLOEXEC;
    refuse!(flags & !known != 0, EOPNOTSUPP);
    let nonblocking = file.nonblocking() || flags & MSG_DONTWAIT != 0;
    let peek = flags & MSG_PEEK != 0;
    if let Object::Socket(socket, Kind::Datagram) = file.object {
        let mut data = [0; MAX_DATAGRAM as usize];
        let (count, from) = sched::retry(Wait::Object(file.id), !nonblocking, || {
            network::with(|stack, _| stack.recv_from(socket, &mut data, peek))
        })?;
        let mut done = 0;
        for (at, length) in parts {
            let part = (*length as usize).min(count - done);
            usercopy::write(*at, &data[done..done + part])?;
            done += part;
        }
        return Ok((done as u64, from, done < count));
    }
    let all = flags & MSG_WAITALL != 0;
    Ok((io::read_parts(file, parts, None, nonblocking, peek, all)?, None, false))
}

/// Limits: MSG_DONTWAIT, MSG_NOSIGNAL; MSG_MORE changes nothing.
pub fn sendto(_: &mut Frame, &[fd, at, length, flags, to, to_length]: &Args) -> Answer {
    let file = get(fd)?;
    let target = (to != 0).then(|| read_address(to, to_length)).transpose()?;
    send_message(&file, &io::one_part(at, length)?, flags, target)
}

/// Limits: MSG_DONTWAIT, MSG_PEEK, MSG_WAITALL, MSG_NOSIGNAL.
pub fn recvfrom(_: &mut Frame, &[fd, at, length, flags, from, from_length]: &Args) -> Answer {
    let file = get(fd)?;
    let (count, sender, _) = receive_message(&file, &io::one_part(at, length)?, flags)?;
    if sender.is_some() {
        write_address(from, from_length, sender)?;
    } else if from != 0 {
        usercopy::write_u32(from_length, 0)?;
    }
    Ok(count)
}

/// Limits: no control messages (EINVAL).
pub fn sendmsg(_: &mut Frame, &[fd, message, flags, ..]: &Args) -> Answer {
    let file = get(fd)?;
    let words = usercopy::read_words(message, 7)?;
    refuse!(words[4] != 0 && words[5] != 0, EINVAL);
    let target = if words[0] != 0 { Some(read_address(words[0], words[1])?) } else { None };
    send_message(&file, &io::parts(words[2], words[3])?, flags, target)
}

/// Limits: no control messages.
pub fn recvmsg(_: &mut Frame, &[fd, message, flags, ..]: &Args) -> Answer {
    let file = get(fd)?;
    let words = usercopy::read_words(message, 7)?;
    let (count, sender, cut) = receive_message(&file, &io::parts(words[2], words[3])?, flags)?;
    if words[0] != 0 && sender.is_some() {
        write_address(words[0], message + 8, sender)?;
    } else {
        usercopy::write_u32(message + 8, 0)?;
    }
    usercopy::write_u64(message + 40, 0)?;
    usercopy::write_u32(message + 48, if cut { MSG_TRUNC } else { 0 })?;
    Ok(count)
}

fn tell_name(args: &Args, ask: impl Fn(&Stack, SocketId) -> Result<SocketAddrV4, Errno>) -> Answer {
    let file = files::get(args[0])?;
    let address = match file.object {
        Object::Pair(..) => None,
        _ => Some(network::look(|stack| ask(stack, socket_of(&file)?.0))?),
    };
    write_address(args[1], args[2], address).map(|()| 0)
}

pub fn getsockname(_: &mut Frame, args: &Args) -> Answer {
    let none = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    tell_name(args, |stack, socket| Ok(stack.local_address(socket).unwrap_or(none)))
}

pub fn getpeername(_: &mut Frame, args: &Args) -> Answer {
    tell_name(args, |stack, socket| stack.peer_address(socket).ok_or(Errno::ENOTCONN))
}

const SOL_SOCKET: u64 = 1;
const IPPROTO_TCP: u64 = 6;
const SO_REUSEADDR: u64 = 2;
const SO_TYPE: u64 = 3;
const SO_ERROR: u64 = 4;
const SO_BROADCAST: u64 = 6;
const SO_SNDBUF: u64 = 7;
const SO_RCVBUF: u64 = 8;
const SO_KEEPALIVE: u64 = 9;
const SO_LINGER: u64 = 13;
const SO_REUSEPORT: u64 = 15;
const SO_RCVTIMEO: u64 = 20;
const SO_SNDTIMEO: u64 = 21;
const SO_ACCEPTCONN: u64 = 30;
const SO_PROTOCOL: u64 = 38;
const SO_DOMAIN: u64 = 39;
const TCP_NODELAY: u64 = 1;
const TCP_KEEPIDLE: u64 = 4;
const TCP_KEEPINTVL: u64 = 5;
const TCP_KEEPCNT: u64 = 6;

/// The bit of `File::options` that keeps an on-or-off option.
fn option_bit(level: u64, name: u64) -> Option<u32> {
    Some(match (level, name) {
        (SOL_SOCKET, SO_REUSEADDR) => 1,
        (SOL_SOCKET, SO_REUSEPORT) => 2,
        (SOL_SOCKET, SO_KEEPALIVE) => 4,
        (SOL_SOCKET, SO_BROADCAST) => 8,
        (IPPROTO_TCP, TCP_NODELAY) => 16,
        _ => return None,
    })
}

/// Limits: SO_REUSEADDR, SO_REUSEPORT, SO_KEEPALIVE, SO_BROADCAST, SO_SNDBUF, SO_RCVBUF,
/// SO_LINGER off, SO_RCVTIMEO, SO_SNDTIMEO of nought, TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL,
/// TCP_KEEPCNT; sizes and keep-alive times are read back as they are in the stack.
pub fn setsockopt(_: &mut Frame, &[fd, level, name, at, length, _]: &Args) -> Answer {
    let file = get(fd)?;
    if matches!((level, name), (SOL_SOCKET, SO_RCVTIMEO | SO_SNDTIMEO)) {
        let words = usercopy::read_words(at, 2)?;
        return if words == [0, 0] { Ok(0) } else { Err(Errno::ENOPROTOOPT) };
    }
    refuse!((length as i32) < 4, EINVAL);
    let on = usercopy::read_u32(at)? != 0;
    if let Some(bit) = option_bit(level, name) {
        let Object::Socket(socket, kind) = file.object else {
            return if level == SOL_SOCKET { Ok(0) } else { Err(Errno::EOPNOTSUPP) };
        };
        refuse!(level == IPPROTO_TCP && kind != Kind::Stream, ENOPROTOOPT);
        let options = file.options.get() & !bit;
        file.options.set(if on { options | bit } else { options });
        let option = match bit {
            4 => SocketOption::KeepAlive(on),
            16 => SocketOption::NoDelay(on),
            _ => SocketOption::ReuseAddress(on),
        };
        network::with(|stack, _| stack.set_option(socket, option))?;
        return Ok(0);
    }
    match (level, name) {
        (SOL_SOCKET, SO_SNDBUF | SO_RCVBUF) => Ok(0),
        (IPPROTO_TCP, TCP_KEEPIDLE | TCP_KEEPINTVL | TCP_KEEPCNT) => Ok(0),
        (SOL_SOCKET, SO_LINGER) if !on => Ok(0),
        _ => Err(Errno::ENOPROTOOPT),
    }
}

/// Limits: the same, SO_ERROR, SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN.
pub fn getsockopt(_: &mut Frame, &[fd, level, name, at, length_at, _]: &Args) -> Answer {
    let file = get(fd)?;
    let inet = match file.object {
        Object::Socket(socket, kind) => Some((socket, kind)),
        _ => None,
    };
    let value = match (level, name, inet) {
        (SOL_SOCKET, SO_ERROR, Some((socket, _))) => {
            let error = network::with(|stack, _| stack.take_error(socket));
            error.map_or(0, |error| error as u32)
        }
        (SOL_SOCKET, SO_ERROR, None) => 0,
        (SOL_SOCKET, SO_TYPE, Some((_, Kind::Datagram))) => SOCK_DGRAM as u32,
        (SOL_SOCKET, SO_TYPE, _) => SOCK_STREAM as u32,
        (SOL_SOCKET, SO_DOMAIN, Some(_)) => AF_INET as u32,
        (SOL_SOCKET, SO_DOMAIN, None) => AF_UNIX as u32,
        (SOL_SOCKET, SO_PROTOCOL, Some((_, Kind::Stream))) => 6,
        (SOL_SOCKET, SO_PROTOCOL, Some((_, Kind::Datagram))) => 17,
        (SOL_SOCKET, SO_PROTOCOL, None) => 0,
        (SOL_SOCKET, SO_ACCEPTCONN, Some((socket, _))) => {
            u32::from(network::look(|stack| stack.is_listening(socket)))
        }
        (SOL_SOCKET, SO_SNDBUF, _) => net::SEND_BUFFER as u32,
        (SOL_SOCKET, SO_RCVBUF, _) => net::RECEIVE_BUFFER as u32,
        (IPPROTO_TCP, TCP_KEEPIDLE | TCP_KEEPINTVL, _) => net::KEEP_ALIVE_S as u32,
        (IPPROTO_TCP, TCP_KEEPCNT, _) => net::KEEP_ALIVE_PROBES,
        (SOL_SOCKET, SO_LINGER, _) => 0,
        _ => {
            let bit = option_bit(level, name).ok_or(Errno::ENOPROTOOPT)?;
            u32::from(file.options.get() & bit != 0)
        }
    };
    let room = usercopy::read_u32(length_at)? as i32;
    refuse!(room < 0, EINVAL);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    let size = if (level, name) == (SOL_SOCKET, SO_LINGER) { 8 } else { 4 };
    let length = size.min(room as usize);
    usercopy::write(at, &bytes[..length])?;
    usercopy::write_u32(length_at, length as u32).map(|()| 0)
}
