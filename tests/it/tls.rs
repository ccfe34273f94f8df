//! TLS at the doors: renewed files, demanded certificates, slow hands.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dingd::sim::daemon::{API_TOKEN, Daemon};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::process::command;
use crate::support::{Stage, fast, program, until};

fn certificate(dir: &Path, name: &str) -> rcgen::CertifiedKey<KeyPair> {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let key = dir.join("key.pem");
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    permit(&key, 0o600);
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    made
}

fn permit(file: &Path, mode: u32) {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Somebody who vouches for clients.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, both PEM.
fn client_of(authority: &CertifiedIssuer<'static, KeyPair>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["platform".to_owned()]).unwrap();
    let made = params.signed_by(&key, authority).unwrap();
    (made.pem(), key.serialize_pem())
}

/// A stage whose callbacks door has the files of `dir` and these limits, and where that door is.
async fn callbacks_over_tls(dir: &Path, limits: &str) -> (Stage, String) {
    let dir = dir.display();
    let door = format!(
        "{limits}\ntls = {{ cert_file = \"{dir}/cert.pem\", key_file = \"{dir}/key.pem\" }}\n"
    );
    let edit = |config: String| config.replacen("tls = false\n", &door, 1);
    let stage = Stage::with(fast(), edit).await;
    let address = stage.daemon.callbacks().trim_start_matches("http://");
    let address = address.to_owned();
    (stage, address)
}

async fn connect(
    address: &str,
    name: &str,
    certificate: &str,
    client: Option<&(String, String)>,
) -> Result<TlsStream<TcpStream>, std::io::Error> {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der(certificate)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config
                .with_client_auth_cert(vec![der(certificate)], key)
                .unwrap()
        }
    };
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

#[tokio::test]
async fn a_certificate_is_renewed_without_dropping_a_connection_and_a_broken_one_is_not_taken() {
    let tls = tempfile::tempdir().unwrap();
    let first = certificate(tls.path(), "first.example");
    let (stage, address) = callbacks_over_tls(tls.path(), "header_timeout_ms = 60000").await;
    let mut old = connect(&address, "first.example", &first.cert.pem(), None)
        .await
        .unwrap();
    let ask = async |stream: &mut TlsStream<TcpStream>| {
        stream
            .write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        let mut rest = vec![0; 4096];
        drop(tokio::time::timeout(Duration::from_millis(200), stream.read(&mut rest)).await);
        String::from_utf8(answer.to_vec()).unwrap()
    };
    assert_eq!(ask(&mut old).await, "HTTP/1.1 404");
    // A key that everybody can read is refused like a certificate that is none.
    let key = tls.path().join("key.pem");
    std::fs::write(&key, first.signing_key.serialize_pem()).unwrap();
    permit(&key, 0o644);
    until("it is reported", async || {
        let degraded = stage.ready().await["degraded"].to_string();
        degraded.contains("everybody can read it")
    })
    .await;
    permit(&key, 0o600);
    std::fs::write(tls.path().join("cert.pem"), "garbage").unwrap();
    until("it is reported", async || {
        stage.ready().await["degraded"]
            .to_string()
            .contains("certificate")
    })
    .await;
    connect(&address, "first.example", &first.cert.pem(), None)
        .await
        .unwrap();
    let second = certificate(tls.path(), "second.example");
    until("the new one is used", async || {
        connect(&address, "second.example", &second.cert.pem(), None)
            .await
            .is_ok()
    })
    .await;
    assert_eq!(
        ask(&mut old).await,
        "HTTP/1.1 404",
        "the old connection lives on"
    );
    drop(old);
    stage.close().await;
}

/// With 1, after which systemd tries again: with 64, as for a mistake in the configuration, it would not.
#[tokio::test]
async fn a_start_with_a_broken_certificate_names_the_file_and_ends_with_1() {
    let tls = tempfile::tempdir().unwrap();
    certificate(tls.path(), "first.example");
    let (mut stage, _) = callbacks_over_tls(tls.path(), "").await;
    stage.daemon.kill().await;
    let file = tls.path().join("cert.pem");
    std::fs::write(&file, "garbage").unwrap();
    let config = stage.dir.path().join("config.toml");
    let (code, text) = command(&config, &["run"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&file.display().to_string()), "{text}");
    certificate(tls.path(), "first.example");
    stage.daemon = Daemon::start(program(), stage.dir.path(), &stage.config)
        .await
        .unwrap();
    stage.close().await;
}

/// What the API answers to a client with this certificate; with TLS 1.3 the refusal comes with the answer.
async fn status_with(
    stage: &Stage,
    server: &str,
    client: Option<&(String, String)>,
) -> Option<String> {
    let address = stage.daemon.api().trim_start_matches("http://").to_owned();
    let mut stream = connect(&address, "api.example", server, client)
        .await
        .ok()?;
    let head =
        format!("GET /v1/chats HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_TOKEN}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.ok()?;
    Some(String::from_utf8(answer.to_vec()).unwrap())
}

#[tokio::test]
async fn the_api_door_takes_only_clients_of_its_ca_and_notices_another_ca() {
    let tls = tempfile::tempdir().unwrap();
    let server = certificate(tls.path(), "api.example").cert.pem();
    let (first, second) = (authority(), authority());
    let ca_file = tls.path().join("ca.pem");
    std::fs::write(&ca_file, first.pem()).unwrap();
    let dir = tls.path().display().to_string();
    let edit = |config: String| {
        let files = format!(
            "[api]\ntls = {{ cert_file = \"{dir}/cert.pem\", key_file = \"{dir}/key.pem\", client_ca_file = \"{dir}/ca.pem\" }}\n"
        );
        config.replacen("[api]\n", &files, 1)
    };
    let stage = Stage::with(fast(), edit).await;
    let (ours, theirs) = (client_of(&first), client_of(&second));
    let good = Some("HTTP/1.1 200".to_owned());
    assert_eq!(status_with(&stage, &server, Some(&ours)).await, good);
    for stranger in [None, Some(&theirs)] {
        assert_eq!(status_with(&stage, &server, stranger).await, None);
    }
    // As old as the one before it, as a file that was unpacked or linked may be.
    let written = std::fs::metadata(&ca_file).unwrap().modified().unwrap();
    let other = tls.path().join("other.pem");
    std::fs::write(&other, second.pem()).unwrap();
    let file = std::fs::File::options().write(true).open(&other).unwrap();
    file.set_modified(written - Duration::from_mins(1)).unwrap();
    std::fs::rename(&other, &ca_file).unwrap();
    until("the other CA counts", async || {
        status_with(&stage, &server, Some(&theirs)).await == good
    })
    .await;
    assert_eq!(status_with(&stage, &server, Some(&ours)).await, None);
    stage.close().await;
}

#[tokio::test]
async fn whoever_does_not_finish_the_handshake_is_let_go_and_counted() {
    let tls = tempfile::tempdir().unwrap();
    let server = certificate(tls.path(), "dingd.example").cert.pem();
    let limits = "handshake_timeout_ms = 300";
    let (stage, address) = callbacks_over_tls(tls.path(), limits).await;
    let mut silent = vec![];
    for _ in 0..4 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    connect(&address, "dingd.example", &server, None)
        .await
        .unwrap();
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "let go");
    }
    let counted = r#"dingd_http_rejected_total{listener="callbacks",reason="handshake_timeout"} 4"#;
    until("they are counted", async || {
        stage.metrics().await.contains(counted)
    })
    .await;
    stage.close().await;
}
