//! One TLS connection without I/O: rustls between two buffers of the caller.
use crate::buffers::{detached, ReadBuf, WriteBuf};
use crate::tls_config::{tls_error, Side, TlsConfig, TlsError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;
use rustls::{ClientConnection, Connection, ProtocolVersion, ServerConnection};
use std::io::{ErrorKind, Read, Write};
use std::sync::{Mutex, MutexGuard};

/// Ciphertext that waits to be sent; when it is full `send` takes less.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// An exporter gives keys, not streams.
const EXPORT_MAX_BYTES: usize = 1024;

struct Inner {
    connection: Connection,
    /// Decrypted, not handed out yet.
    pending: usize,
    peer_closed: bool,
    failed: bool,
}

impl Inner {
    fn feed(&mut self, wire: &[u8], out: &mut [u8]) -> Result<(usize, usize), String> {
        let (mut consumed, mut produced) = (0, 0);
        loop {
            while self.pending > 0 && produced < out.len() {
                match self.connection.reader().read(&mut out[produced..]) {
                    Ok(0) => self.pending = 0,
                    Ok(size) => {
                        produced += size;
                        self.pending = self.pending.saturating_sub(size);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.pending = 0,
                    Err(error) => return Err(error.to_string()),
                }
            }
            // rustls takes nothing more while 16 KiB of plaintext wait; and an empty read would
            // tell it that the connection has ended.
            if self.pending > 0 || consumed == wire.len() {
                return Ok((consumed, produced));
            }
            let mut rest = &wire[consumed..];
            let size = self
                .connection
                .read_tls(&mut rest)
                .map_err(|error| error.to_string())?;
            if size == 0 {
                // After close_notify whatever still comes is not part of the connection.
                return Ok((wire.len(), produced));
            }
            consumed += size;
            let state = self
                .connection
                .process_new_packets()
                .map_err(|error| error.to_string())?;
            self.pending = state.plaintext_bytes_to_read();
            self.peer_closed = self.peer_closed || state.peer_has_closed();
        }
    }

    fn send(&mut self, plaintext: &[u8]) -> Result<usize, String> {
        let mut sent = 0;
        while sent < plaintext.len() {
            let size = self
                .connection
                .writer()
                .write(&plaintext[sent..])
                .map_err(|error| error.to_string())?;
            if size == 0 {
                break;
            }
            sent += size;
        }
        Ok(sent)
    }

    fn take_into(&mut self, out: &mut [u8]) -> Result<usize, String> {
        let mut produced = 0;
        while produced < out.len() && self.connection.wants_write() {
            let mut rest = &mut out[produced..];
            produced += self
                .connection
                .write_tls(&mut rest)
                .map_err(|error| error.to_string())?;
        }
        Ok(produced)
    }

    fn send_into(&mut self, plaintext: &[u8], out: &mut [u8]) -> Result<(usize, usize), String> {
        let (mut sent, mut produced) = (0, 0);
        loop {
            produced += self.take_into(&mut out[produced..])?;
            if produced == out.len() || sent == plaintext.len() {
                return Ok((sent, produced));
            }
            let size = self.send(&plaintext[sent..])?;
            if size == 0 {
                return Ok((sent, produced));
            }
            sent += size;
        }
    }
}

#[pyclass(frozen, module = "o3storage._native")]
pub struct TlsConnection {
    inner: Mutex<Inner>,
}

impl TlsConnection {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        match self.inner.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn usable(&self) -> PyResult<MutexGuard<'_, Inner>> {
        let inner = self.inner();
        if inner.failed {
            return Err(TlsError::new_err("the TLS connection has failed already"));
        }
        Ok(inner)
    }
}

/// Remembers a failure: only `take` is of use after it.
fn settle<T>(inner: &mut Inner, result: Result<T, String>) -> PyResult<T> {
    result.map_err(|message| {
        inner.failed = true;
        TlsError::new_err(message)
    })
}

#[pymethods]
impl TlsConnection {
    #[new]
    #[pyo3(signature = (config, server_name = None))]
    fn new(config: &TlsConfig, server_name: Option<String>) -> PyResult<Self> {
        let mut connection = match (&config.side, server_name) {
            (Side::Server(config), None) => {
                Connection::Server(ServerConnection::new(config.clone()).map_err(tls_error)?)
            }
            (Side::Client(config), Some(name)) => {
                let name = ServerName::try_from(name)
                    .map_err(|_| PyValueError::new_err("not a host name or address"))?;
                let client = ClientConnection::new(config.clone(), name).map_err(tls_error)?;
                Connection::Client(client)
            }
            (Side::Server(_), Some(_)) => {
                return Err(PyValueError::new_err("a server takes no server_name"))
            }
            (Side::Client(_), None) => {
                return Err(PyValueError::new_err("a client needs a server_name"))
            }
        };
        connection.set_buffer_limit(Some(SEND_BUFFER_BYTES));
        Ok(Self {
            inner: Mutex::new(Inner {
                connection,
                pending: 0,
                peer_closed: false,
                failed: false,
            }),
        })
    }

    fn feed(&self, py: Python<'_>, wire: ReadBuf, mut out: WriteBuf) -> PyResult<(usize, usize)> {
        let mut inner = self.usable()?;
        let inner = &mut *inner;
        let result = detached(py, wire.len(), || {
            inner.feed(wire.as_slice(), out.as_mut_slice())
        });
        settle(inner, result)
    }

    fn send(&self, py: Python<'_>, plaintext: ReadBuf) -> PyResult<usize> {
        let mut inner = self.usable()?;
        let inner = &mut *inner;
        let result = detached(py, plaintext.len(), || inner.send(plaintext.as_slice()));
        settle(inner, result)
    }

    fn send_into(
        &self,
        py: Python<'_>,
        plaintext: ReadBuf,
        mut out: WriteBuf,
    ) -> PyResult<(usize, usize)> {
        let mut inner = self.usable()?;
        let inner = &mut *inner;
        let result = detached(py, plaintext.len(), || {
            inner.send_into(plaintext.as_slice(), out.as_mut_slice())
        });
        settle(inner, result)
    }

    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let mut inner = self.inner();
        let mut wire = Vec::new();
        while inner.connection.wants_write() {
            inner.connection.write_tls(&mut wire).map_err(tls_error)?;
        }
        Ok(PyBytes::new(py, &wire))
    }

    fn take_into(&self, mut out: WriteBuf) -> PyResult<usize> {
        self.inner()
            .take_into(out.as_mut_slice())
            .map_err(TlsError::new_err)
    }

    fn close(&self) {
        let mut inner = self.inner();
        if !inner.failed {
            inner.connection.send_close_notify();
        }
    }

    fn export_keying_material<'py>(
        &self,
        py: Python<'py>,
        size: usize,
        label: ReadBuf,
        context: Option<ReadBuf>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        if size > EXPORT_MAX_BYTES {
            return Err(PyValueError::new_err(
                "an exporter gives at most 1024 bytes",
            ));
        }
        let inner = self.usable()?;
        let context = context.as_ref().map(ReadBuf::as_slice);
        PyBytes::new_with(py, size, |out| {
            inner
                .connection
                .export_keying_material(out, label.as_slice(), context)
                .map(drop)
                .map_err(tls_error)
        })
    }

    #[getter]
    fn handshaking(&self) -> bool {
        self.inner().connection.is_handshaking()
    }

    #[getter]
    fn wants_write(&self) -> bool {
        self.inner().connection.wants_write()
    }

    #[getter]
    fn pending_plaintext(&self) -> bool {
        self.inner().pending > 0
    }

    #[getter]
    fn peer_closed(&self) -> bool {
        self.inner().peer_closed
    }

    #[getter]
    fn version(&self) -> Option<&'static str> {
        match self.inner().connection.protocol_version()? {
            ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
            ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
            _ => None,
        }
    }

    #[getter]
    fn cipher_suite(&self) -> Option<&'static str> {
        let suite = self.inner().connection.negotiated_cipher_suite()?;
        suite.suite().as_str()
    }

    #[getter]
    fn alpn(&self) -> Option<String> {
        let inner = self.inner();
        let name = inner.connection.alpn_protocol()?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    #[getter]
    fn server_name(&self) -> Option<String> {
        match &self.inner().connection {
            Connection::Server(server) => server.server_name().map(str::to_owned),
            Connection::Client(_) => None,
        }
    }

    #[getter]
    fn peer_certificate<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let inner = self.inner();
        let leaf = inner.connection.peer_certificates()?.first()?;
        Some(PyBytes::new(py, leaf))
    }

    #[getter]
    fn peer_public_key<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let inner = self.inner();
        let certificates = inner.connection.peer_certificates();
        let Some(leaf) = certificates.and_then(<[_]>::first) else {
            return Ok(None);
        };
        let parsed = ParsedCertificate::try_from(leaf).map_err(tls_error)?;
        let key = parsed.subject_public_key_info();
        Ok(Some(PyBytes::new(py, &key)))
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<TlsConnection>()
}
