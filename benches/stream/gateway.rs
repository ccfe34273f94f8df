//! A Stream gateway that gives everybody a ticket and hands out the connections that come with it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Error;

/// A connection of the daemon's.
pub(crate) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// What the gateway shows and the daemon trusts.
#[derive(Debug)]
pub(crate) struct Certificate {
    file: PathBuf,
    key: PathBuf,
}

impl Certificate {
    /// A new one for this machine.
    pub(crate) fn make(dir: &Path) -> Result<Self, Error> {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let (file, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        std::fs::write(&file, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        Ok(Self { file, key })
    }

    /// Where it lies.
    pub(crate) fn file(&self) -> &str {
        self.file.to_str().unwrap_or_default()
    }

    fn acceptor(&self) -> Result<TlsAcceptor, Error> {
        let certificate = CertificateDer::from_pem_file(&self.file)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// The gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    port: u16,
    sockets: mpsc::UnboundedReceiver<Socket>,
}

impl Gateway {
    /// Listens from now on.
    pub(crate) async fn start(certificate: &Certificate) -> Result<Self, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let acceptor = certificate.acceptor()?;
        let (hand_out, sockets) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, hand_out) = (acceptor.clone(), hand_out.clone());
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, acceptor, port, hand_out).await {
                        eprintln!("the gateway: {error}");
                    }
                });
            }
        });
        Ok(Self { port, sockets })
    }

    /// For `[egress] api_url`.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A client that does nothing but acknowledge, as a process.
    pub(crate) fn bare_client(&self, certificate: &Certificate) -> Result<Child, Error> {
        let child = Command::new(std::env::current_exe()?)
            .args([super::BARE, &self.port.to_string(), certificate.file()])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(child)
    }

    /// The next connection.
    pub(crate) async fn next(&mut self) -> Result<Socket, Error> {
        let patience = std::time::Duration::from_secs(30);
        let next = tokio::time::timeout(patience, self.sockets.recv()).await?;
        Ok(next.ok_or("the gateway ended")?)
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    port: u16,
    hand_out: mpsc::UnboundedSender<Socket>,
) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    stream.set_nodelay(true).map_err(text)?;
    let mut stream = acceptor.accept(stream).await.map_err(text)?;
    loop {
        let Some(head) = head(&mut stream).await.map_err(text)? else {
            return Ok(());
        };
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (known, value) = line.split_once(':')?;
                known
                    .eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
        };
        if head.starts_with("GET /connect?ticket=t%2B1 ") {
            let key = header("sec-websocket-key").ok_or("no key")?;
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                 sec-websocket-accept: {}\r\n\r\n",
                derive_accept_key(key.as_bytes())
            );
            stream.write_all(answer.as_bytes()).await.map_err(text)?;
            let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
            return hand_out
                .send(socket)
                .map_err(|_| "nobody takes it".to_owned());
        }
        let length = header("content-length").and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await.map_err(text)?;
        let place = format!(r#"{{"endpoint":"wss://127.0.0.1:{port}/connect","ticket":"t+1"}}"#);
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{place}",
            place.len()
        );
        stream.write_all(answer.as_bytes()).await.map_err(text)?;
    }
}

/// A request's head, without reading behind it; `None` is the end.
async fn head(stream: &mut TlsStream<TcpStream>) -> std::io::Result<Option<String>> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) if head.is_empty() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}
