//! Certificates of a door, re-read without dropping a connection.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

/// Which files a door's TLS is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Private key, PEM.
    pub key_file: PathBuf,
    /// Clients must show a certificate of this CA.
    pub client_ca_file: Option<PathBuf>,
}

/// The files cannot be used. Names the file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TlsError {
    path: PathBuf,
    problem: String,
}

/// The TLS of one door. New connections use the newest certificate.
#[derive(Debug)]
pub struct Tls(ArcSwap<Loaded>);

/// Files that were read and fit together.
#[derive(Debug)]
pub struct Loaded {
    files: Files,
    versions: Vec<Version>,
    not_after_s: i64,
    config: Arc<ServerConfig>,
}

impl Loaded {
    /// Reads the files.
    pub fn read(files: Files) -> Result<Self, TlsError> {
        let versions = versions(&files);
        let not_after_s = not_after_s(&files.cert_file)?;
        let config = config(&files)?;
        Ok(Self {
            files,
            versions,
            not_after_s,
            config,
        })
    }
}

impl Tls {
    /// The TLS made of these files.
    pub fn new(loaded: Loaded) -> Self {
        Self(ArcSwap::from_pointee(loaded))
    }

    /// Uses other files from now on.
    pub fn adopt(&self, loaded: Loaded) {
        self.0.store(Arc::new(loaded));
    }

    /// When the certificate in use expires, in seconds since 1970.
    pub fn not_after_s(&self) -> i64 {
        self.0.load().not_after_s
    }

    /// Reads the files again if they were changed; returns whether they were. On an error the old
    /// certificate stays.
    pub fn renew(&self) -> Result<bool, TlsError> {
        let old = self.0.load();
        if versions(&old.files) == old.versions {
            return Ok(false);
        }
        self.adopt(Loaded::read(old.files.clone())?);
        Ok(true)
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load().config.clone())
    }
}

/// The provider, named each time: the process-wide default panics once a second one is linked in.
pub(super) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Tells a file from the one that takes its place, even if that is older: when it was written, and its
/// number. `None` if that cannot be told.
type Version = Option<(SystemTime, u64)>;

fn versions(files: &Files) -> Vec<Version> {
    let of = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.ino()))
    };
    let pair = [&files.cert_file, &files.key_file];
    pair.into_iter()
        .chain(&files.client_ca_file)
        .map(of)
        .collect()
}

fn not_after_s(path: &Path) -> Result<i64, TlsError> {
    let error = |problem: String| TlsError {
        path: path.to_owned(),
        problem,
    };
    let chain = certificates(path)?;
    let first = chain
        .first()
        .ok_or_else(|| error("holds no certificate".to_owned()))?;
    let (_, certificate) =
        x509_parser::parse_x509_certificate(first).map_err(|e| error(e.to_string()))?;
    Ok(certificate.validity().not_after.timestamp())
}

fn config(files: &Files) -> Result<Arc<ServerConfig>, TlsError> {
    let error = |path: &Path, problem: String| TlsError {
        path: path.to_owned(),
        problem,
    };
    let chain = certificates(&files.cert_file)?;
    let meta =
        std::fs::metadata(&files.key_file).map_err(|e| error(&files.key_file, e.to_string()))?;
    let mode = meta.permissions().mode() & 0o777;
    // A group may read it: that is how a daemon whose user has no fixed number gets at it.
    if mode & 0o007 != 0 {
        let problem = format!("everybody can read it (mode {mode:o}); chmod 640 it");
        return Err(error(&files.key_file, problem));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key_file)
        .map_err(|e| error(&files.key_file, format!("not a PEM private key ({e})")))?;
    let versions = &[&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|e| error(&files.cert_file, e.to_string()))?;
    let builder = match &files.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|e| error(path, e.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                .build()
                .map_err(|e| error(path, e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    // This also checks that the key belongs to the certificate.
    let config = builder
        .with_single_cert(chain, key)
        .map_err(|e| error(&files.cert_file, format!("does not fit its key ({e})")))?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |problem: String| TlsError {
        path: path.to_owned(),
        problem,
    };
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| error(format!("not PEM certificates ({e})")))?;
    if chain.is_empty() {
        Err(error("holds no certificate".to_owned()))
    } else {
        Ok(chain)
    }
}
