//! The calls on sockets.

use super::*;

impl Stack {
    /// Makes a socket.
    pub fn open(&mut self, kind: Kind) -> Result<SocketId, Error> {
        let held = self.slots.len() - self.free.len() - self.handshakes_open;
        if held >= 2 * MAX_CONNECTIONS {
            return Err(Error::ENOBUFS);
        }
        Ok(self.insert(match kind {
            Kind::Stream => Socket::Fresh(Fresh::default()),
            Kind::Datagram => Socket::Udp(Udp::default()),
        }))
    }

    /// Gives the socket its local address; port 0 chooses one.
    pub fn bind(&mut self, id: SocketId, address: SocketAddrV4) -> Result<(), Error> {
        let ip = *address.ip();
        if !ip.is_unspecified() && !self.egress.is_local(ip) {
            return Err(Error::EADDRNOTAVAIL);
        }
        let protocol = match self.socket(id) {
            Some(Socket::Fresh(Fresh { local: None, .. })) => PROTO_TCP,
            Some(Socket::Udp(Udp { local: None, .. })) => PROTO_UDP,
            _ => return Err(Error::EINVAL),
        };
        let port = match address.port() {
            0 => self.choose_port(protocol)?,
            port if self.ports.contains_key(&(protocol, port)) => return Err(Error::EADDRINUSE),
            port => port,
        };
        self.ports.insert((protocol, port), id);
        if let Some(Socket::Fresh(Fresh { local, .. }) | Socket::Udp(Udp { local, .. })) =
            self.socket_mut(id)
        {
            *local = Some(SocketAddrV4::new(ip, port));
        }
        Ok(())
    }

    fn bind_datagram(&mut self, id: SocketId) -> Result<(), Error> {
        match self.socket(id) {
            Some(Socket::Udp(Udp { local: None, .. })) => {
                self.bind(id, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))
            }
            _ => Ok(()),
        }
    }

    /// A free port from a start that cannot be foreseen (RFC 6056, 3.3.1).
    fn choose_port(&mut self, protocol: u8) -> Result<u16, Error> {
        let count = u64::from(u16::MAX - EPHEMERAL_FIRST) + 1;
        let start = self.draw() % count;
        for i in 0..count {
            let port = EPHEMERAL_FIRST + ((start + i) % count) as u16;
            let first = Key::from(port) << 112;
            let mut used = self.connections.range(first..=first | (Key::MAX >> 16));
            let connected = protocol == PROTO_TCP && used.next().is_some();
            if !connected && !self.ports.contains_key(&(protocol, port)) {
                return Ok(port);
            }
        }
        Err(Error::EADDRINUSE)
    }

    pub fn listen(&mut self, id: SocketId, backlog: usize) -> Result<(), Error> {
        let backlog = backlog.clamp(1, MAX_BACKLOG);
        let local = match self.socket_mut(id) {
            Some(Socket::Listener(listener)) => {
                listener.backlog = backlog;
                return Ok(());
            }
            Some(Socket::Fresh(fresh)) => fresh.local,
            _ => return Err(Error::EOPNOTSUPP),
        };
        let any = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let local = local.map_or_else(|| self.choose_port(PROTO_TCP).map(any), Ok)?;
        let listener = Listener { local, backlog, waiting: VecDeque::new() };
        self.ports.insert((PROTO_TCP, local.port()), id);
        self.slots[id.index as usize].socket = Some(Socket::Listener(listener));
        Ok(())
    }

    pub fn accept(&mut self, id: SocketId) -> Result<(SocketId, SocketAddrV4), Error> {
        let Some(Socket::Listener(listener)) = self.socket_mut(id) else {
            return Err(Error::EINVAL);
        };
        listener.waiting.pop_front().ok_or(Error::EAGAIN)
    }

    /// Begins to connect a stream (`EINPROGRESS`: wait for `writable`, then `take_error`), or
    /// names a datagram socket's peer.
    pub fn connect(
        &mut self,
        id: SocketId,
        remote: SocketAddrV4,
        now_us: u64,
    ) -> Result<(), Error> {
        let remote = match remote.ip().is_unspecified() {
            true => SocketAddrV4::new(Ipv4Addr::LOCALHOST, remote.port()),
            false => remote,
        };
        let source = self.egress.source_for(*remote.ip()).ok_or(Error::ENETUNREACH)?;
        let (bound, no_delay, keep_alive) = match self.socket(id) {
            Some(Socket::Fresh(f)) => (f.local, f.no_delay, f.keep_alive),
            Some(Socket::Udp(_)) => {
                self.bind_datagram(id)?;
                if let Some(Socket::Udp(udp)) = self.socket_mut(id) {
                    udp.remote = Some(remote);
                    let port = udp.local.map_or(0, |l| l.port());
                    udp.local = Some(SocketAddrV4::new(source, port));
                }
                return Ok(());
            }
            Some(Socket::Tcp(tcp)) if tcp.state == State::SynSent => {
                return Err(Error::EINPROGRESS)
            }
            Some(Socket::Tcp(tcp)) => return Err(tcp.error.unwrap_or(Error::EISCONN)),
            _ => return Err(Error::EINVAL),
        };
        if remote.port() == 0 || !self.make_room() {
            return Err(Error::EADDRNOTAVAIL);
        }
        let port = bound.map_or_else(|| self.choose_port(PROTO_TCP), |local| Ok(local.port()))?;
        let ip = bound.map(|l| *l.ip()).filter(|ip| !ip.is_unspecified()).unwrap_or(source);
        let local = SocketAddrV4::new(ip, port);
        let key = key_of(local, remote);
        if self.connections.contains_key(&key) {
            return Err(Error::EADDRINUSE);
        }
        let numbers = self.initial_numbers(key, now_us);
        let mut tcp = Tcp::new(key, numbers, self.egress.mtu, now_us);
        tcp.no_delay = no_delay;
        tcp.keep_alive = keep_alive;
        self.free_port(id);
        self.connections.insert(key, id);
        self.slots[id.index as usize].socket = Some(Socket::Tcp(Box::new(tcp)));
        self.mark_dirty(id);
        Err(Error::EINPROGRESS)
    }

    /// Takes what fits of `data` into the send buffer.
    pub fn send(&mut self, id: SocketId, data: &[u8]) -> Result<usize, Error> {
        let result = self.with_tcp(id, |tcp, egress| tcp.write(data, egress.memory));
        result.unwrap_or_else(|| match self.socket(id) {
            // Datagrams go by `send_to`, which knows the time.
            Some(Socket::Udp(Udp { remote: Some(_), .. })) | None => Err(Error::EINVAL),
            Some(_) => Err(Error::ENOTCONN),
        })
    }

    /// Sends one datagram, to the connected peer where `target` is `None`.
    pub fn send_to(
        &mut self,
        id: SocketId,
        data: &[u8],
        target: Option<SocketAddrV4>,
        now_us: u64,
    ) -> Result<usize, Error> {
        if data.len() > self.egress.mtu - IPV4_HEADER - UDP_HEADER {
            return Err(Error::EMSGSIZE);
        }
        self.bind_datagram(id)?;
        let Some(Socket::Udp(udp)) = self.socket(id) else { return Err(Error::EINVAL) };
        let target = target.or(udp.remote).ok_or(Error::ENOTCONN)?;
        let port = udp.local.map_or(0, |l| l.port());
        let source = self.egress.source_for(*target.ip()).ok_or(Error::ENETUNREACH)?;
        match self.egress.send_udp(SocketAddrV4::new(source, port), target, data, now_us) {
            true => Ok(data.len()),
            false => Err(Error::ENETUNREACH),
        }
    }

    /// Takes received bytes, or leaves them where `peek` is set; 0 is the peer's end.
    pub fn recv(&mut self, id: SocketId, out: &mut [u8], peek: bool) -> Result<usize, Error> {
        self.recv_from(id, out, peek).map(|(n, _)| n)
    }

    /// As `recv`, with a datagram's sender.
    pub fn recv_from(
        &mut self,
        id: SocketId,
        out: &mut [u8],
        peek: bool,
    ) -> Result<(usize, Option<SocketAddrV4>), Error> {
        if let Some(result) = self.with_tcp(id, |tcp, egress| tcp.read(out, peek, egress.memory)) {
            return result.map(|taken| (taken, None));
        }
        match self.socket_mut(id) {
            Some(Socket::Udp(udp)) => {
                let Some((from, data)) = udp.received.front() else {
                    return match udp.error.take() {
                        Some(error) => Err(error),
                        None if udp.closed => Ok((0, None)),
                        None => Err(Error::EAGAIN),
                    };
                };
                let (from, taken) = (*from, data.len().min(out.len()));
                out[..taken].copy_from_slice(&data[..taken]);
                if !peek {
                    let held = data.len();
                    udp.received.pop_front();
                    udp.held -= held;
                    self.egress.memory -= held;
                }
                Ok((taken, Some(from)))
            }
            Some(_) => Err(Error::ENOTCONN),
            None => Err(Error::EINVAL),
        }
    }

    pub fn shutdown(&mut self, id: SocketId, how: Shutdown) -> Result<(), Error> {
        match self.socket_mut(id) {
            Some(Socket::Tcp(tcp)) if tcp.state != State::Closed => {
                self.with_tcp(id, |tcp, _| {
                    tcp.read_shut |= how != Shutdown::Write;
                    if how != Shutdown::Read {
                        tcp.finish();
                    }
                });
                Ok(())
            }
            Some(Socket::Udp(udp)) if udp.remote.is_some() => {
                udp.closed = how != Shutdown::Write;
                self.mark_event(id);
                Ok(())
            }
            Some(Socket::Listener(_)) if how != Shutdown::Write => Ok(()),
            Some(_) => Err(Error::ENOTCONN),
            None => Err(Error::EINVAL),
        }
    }

    /// Gives the socket up. A connection goes on by itself until its end is settled.
    pub fn close(&mut self, id: SocketId, now_us: u64) {
        match self.socket_mut(id) {
            Some(Socket::Tcp(_)) => {
                self.with_tcp(id, |tcp, egress| tcp.orphan(egress, now_us));
            }
            Some(Socket::Listener(listener)) => {
                let waiting = core::mem::take(&mut listener.waiting);
                self.release(id);
                for (waiting_id, _) in waiting {
                    self.with_tcp(waiting_id, |tcp, egress| {
                        tcp.orphan = true;
                        tcp.abort(egress, now_us);
                    });
                }
            }
            _ => self.release(id),
        }
    }

    pub fn readiness(&self, id: SocketId) -> Readiness {
        match self.socket(id) {
            Some(Socket::Tcp(tcp)) => tcp.readiness(self.egress.memory),
            Some(Socket::Listener(listener)) => {
                Readiness { readable: !listener.waiting.is_empty(), ..Readiness::default() }
            }
            Some(Socket::Udp(udp)) => udp.readiness(),
            // Linux says so of a stream that was never connected.
            Some(Socket::Fresh(_)) => {
                Readiness { writable: true, hung_up: true, ..Readiness::default() }
            }
            None => Readiness::default(),
        }
    }

    /// The waiting error, once.
    pub fn take_error(&mut self, id: SocketId) -> Option<Error> {
        match self.socket_mut(id) {
            Some(Socket::Tcp(tcp)) => tcp.error.take(),
            Some(Socket::Udp(udp)) => udp.error.take(),
            _ => None,
        }
    }

    pub fn local_address(&self, id: SocketId) -> Option<SocketAddrV4> {
        match self.socket(id)? {
            Socket::Tcp(tcp) => Some(local_of(tcp.key)),
            Socket::Listener(listener) => Some(listener.local),
            Socket::Fresh(fresh) => fresh.local,
            Socket::Udp(udp) => udp.local,
        }
    }

    pub fn peer_address(&self, id: SocketId) -> Option<SocketAddrV4> {
        match self.socket(id)? {
            Socket::Tcp(t) if !matches!(t.state, State::SynSent | State::Closed) => {
                Some(remote_of(t.key))
            }
            Socket::Udp(udp) => udp.remote,
            _ => None,
        }
    }

    pub fn is_listening(&self, id: SocketId) -> bool {
        matches!(self.socket(id), Some(Socket::Listener(_)))
    }

    pub fn set_option(&mut self, id: SocketId, option: SocketOption) -> Result<(), Error> {
        match (self.socket_mut(id).ok_or(Error::EINVAL)?, option) {
            (Socket::Tcp(tcp), SocketOption::NoDelay(on)) => tcp.no_delay = on,
            (Socket::Tcp(_), SocketOption::KeepAlive(on)) => {
                self.with_tcp(id, |tcp, _| tcp.keep_alive = on);
            }
            (Socket::Fresh(fresh), SocketOption::NoDelay(on)) => fresh.no_delay = on,
            (Socket::Fresh(fresh), SocketOption::KeepAlive(on)) => fresh.keep_alive = on,
            // An address is free as soon as its holder closed: there is nothing to allow.
            _ => {}
        }
        Ok(())
    }

    /// Buffered bytes not yet read, for FIONREAD.
    pub fn pending(&self, id: SocketId) -> usize {
        match self.socket(id) {
            Some(Socket::Tcp(tcp)) => tcp.ready,
            Some(Socket::Udp(udp)) => udp.received.front().map_or(0, |(_, data)| data.len()),
            _ => 0,
        }
    }
}
