//! The least that a client of the gateway can do.

use std::path::Path;
use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use super::Error;

const ACK: &str = r#"{"code":200,"headers":{"contentType":"application/json","messageId":"m-0"},"message":"OK","data":"{\"status\":\"SUCCESS\",\"message\":\"stored\"}"}"#;

/// Acknowledges every frame, whatever it says, until the gateway hangs up.
pub(crate) async fn client(port: &str, certificate: &Path) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).await?;
    stream.set_nodelay(true)?;
    let tls = TlsConnector::from(Arc::new(config));
    let stream = tls.connect("127.0.0.1".try_into()?, stream).await?;
    let url = format!("wss://127.0.0.1:{port}/connect?ticket=t%2B1");
    let (mut socket, _) = client_async(url, stream).await?;
    while let Some(Ok(message)) = socket.next().await {
        if message.is_text() {
            socket.send(Message::text(ACK)).await?;
        }
    }
    Ok(())
}
