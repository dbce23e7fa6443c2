//! Certificates and rules of TLS, made once and shared by connections.
use crate::buffers::ReadBuf;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
};
use std::sync::{Arc, OnceLock};

pyo3::create_exception!(
    _native,
    TlsError,
    PyException,
    "The handshake or a record failed, or a certificate or key is of no use."
);

pub fn tls_error(error: impl std::fmt::Display) -> PyErr {
    TlsError::new_err(error.to_string())
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

fn versions(tls13_only: bool) -> &'static [&'static SupportedProtocolVersion] {
    if tls13_only {
        &BOTH[..1]
    } else {
        &BOTH
    }
}

/// Accepts any certificate whose key the peer proves to hold; who that is, the caller decides by
/// the public key (DESIGN, Peers: membership names keys).
#[derive(Debug)]
struct AnyIdentity(Arc<CryptoProvider>);

impl AnyIdentity {
    /// A certificate that cannot be parsed has no key to compare.
    fn readable(certificate: &CertificateDer<'_>) -> Result<(), Error> {
        ParsedCertificate::try_from(certificate).map(drop)
    }

    fn check12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn check13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for AnyIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::readable(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for AnyIdentity {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::readable(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

fn chain_of(pem: &ReadBuf) -> PyResult<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_slice_iter(pem.as_slice())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::new_err(format!("not a PEM certificate chain: {error}")))?;
    if chain.is_empty() {
        return Err(TlsError::new_err(
            "no certificate found; give PEM text with BEGIN CERTIFICATE, the server's own first",
        ));
    }
    Ok(chain)
}

fn key_of(pem: &ReadBuf) -> PyResult<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_slice()).map_err(|_| {
        TlsError::new_err(
            "no private key found; give an unencrypted PEM key (BEGIN PRIVATE KEY, \
             BEGIN EC PRIVATE KEY or BEGIN RSA PRIVATE KEY)",
        )
    })
}

fn roots_of(pem: &ReadBuf) -> PyResult<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in chain_of(pem)? {
        roots.add(certificate).map_err(tls_error)?;
    }
    Ok(Arc::new(roots))
}

fn pair_error(error: Error) -> PyErr {
    match error {
        Error::InconsistentKeys(_) => {
            TlsError::new_err("the private key does not belong to the certificate")
        }
        error => tls_error(error),
    }
}

pub enum Side {
    Server(Arc<ServerConfig>),
    Client(Arc<ClientConfig>),
}

#[pyclass(frozen, module = "o3storage._native")]
pub struct TlsConfig {
    pub side: Side,
}

#[pymethods]
impl TlsConfig {
    #[staticmethod]
    #[pyo3(signature = (chain_pem, key_pem, *, client_auth = "none", client_ca_pem = None, alpn = Vec::new(), tls13_only = false))]
    fn server(
        chain_pem: ReadBuf,
        key_pem: ReadBuf,
        client_auth: &str,
        client_ca_pem: Option<ReadBuf>,
        alpn: Vec<String>,
        tls13_only: bool,
    ) -> PyResult<Self> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions(tls13_only))
            .map_err(tls_error)?;
        let builder = match (client_auth, &client_ca_pem) {
            ("none", None) => builder.with_no_client_auth(),
            ("identity", None) => {
                builder.with_client_cert_verifier(Arc::new(AnyIdentity(provider())))
            }
            ("optional" | "required", Some(ca)) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots_of(ca)?, provider());
                let verifier = if client_auth == "optional" {
                    verifier.allow_unauthenticated()
                } else {
                    verifier
                };
                builder.with_client_cert_verifier(verifier.build().map_err(tls_error)?)
            }
            ("none" | "identity", Some(_)) => {
                return Err(PyValueError::new_err(
                    "client_ca_pem belongs to client_auth \"optional\" or \"required\"",
                ))
            }
            ("optional" | "required", None) => {
                return Err(PyValueError::new_err(
                    "client_auth \"optional\" and \"required\" need client_ca_pem",
                ))
            }
            _ => {
                return Err(PyValueError::new_err(
                    "client_auth is \"none\", \"optional\", \"required\" or \"identity\"",
                ))
            }
        };
        let mut config = builder
            .with_single_cert(chain_of(&chain_pem)?, key_of(&key_pem)?)
            .map_err(pair_error)?;
        config.alpn_protocols = alpn.into_iter().map(String::into_bytes).collect();
        if client_auth == "identity" {
            // Peers prove their key anew each time.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(tls_error)?;
        }
        Ok(Self {
            side: Side::Server(Arc::new(config)),
        })
    }

    #[staticmethod]
    #[pyo3(signature = (*, ca_pem, chain_pem = None, key_pem = None, alpn = Vec::new(), tls13_only = false))]
    fn client(
        ca_pem: Option<ReadBuf>,
        chain_pem: Option<ReadBuf>,
        key_pem: Option<ReadBuf>,
        alpn: Vec<String>,
        tls13_only: bool,
    ) -> PyResult<Self> {
        let identity_only = ca_pem.is_none();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions(tls13_only))
            .map_err(tls_error)?;
        let builder = match &ca_pem {
            Some(ca) => {
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(roots_of(ca)?, provider())
                        .build()
                        .map_err(tls_error)?;
                builder.with_webpki_verifier(verifier)
            }
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyIdentity(provider()))),
        };
        let mut config = match (&chain_pem, &key_pem) {
            (Some(chain), Some(key)) => builder
                .with_client_auth_cert(chain_of(chain)?, key_of(key)?)
                .map_err(pair_error)?,
            (None, None) => builder.with_no_client_auth(),
            _ => {
                return Err(PyValueError::new_err(
                    "chain_pem and key_pem belong together",
                ))
            }
        };
        config.alpn_protocols = alpn.into_iter().map(String::into_bytes).collect();
        if identity_only {
            config.resumption = Resumption::disabled();
        }
        Ok(Self {
            side: Side::Client(Arc::new(config)),
        })
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("TlsError", m.py().get_type::<TlsError>())?;
    m.add_class::<TlsConfig>()
}
