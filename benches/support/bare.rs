//! hyper and nothing else: what a server costs that only reads and answers.

use std::io;
use std::net::Ipv4Addr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

/// Reads every body and answers what `reply` says, for ever. Prints its address first.
pub(crate) fn serve<F>(
    tls: Option<&TlsAcceptor>,
    reply: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> io::Result<()>
where
    F: Future<Output = Bytes> + Send + 'static,
{
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let reply = reply.clone();
            match tls.cloned() {
                None => drop(tokio::spawn(connection(stream, reply))),
                Some(tls) => drop(tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        connection(stream, reply).await;
                    }
                })),
            }
        }
    })
}

async fn connection<F: Future<Output = Bytes> + Send>(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    reply: impl Fn() -> F,
) {
    let service = service_fn(async |request: Request<Incoming>| {
        request.into_body().collect().await?;
        Ok::<_, hyper::Error>(Response::new(Full::new(reply().await)))
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // The other end leaves when the round is over.
    drop(served);
}
