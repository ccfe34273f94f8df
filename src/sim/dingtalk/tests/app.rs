//! The app's side of an HTTP callback: it keeps what it is told and answers as it was set to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;

use super::*;
use crate::sim::server::{Answer, Server, Service};

/// A running app.
pub(super) struct Callee {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    told: Mutex<Vec<Told>>,
    answer: Mutex<(u16, String, u64)>,
}

/// One request that reached the app.
#[derive(Debug, Clone)]
pub(super) struct Told {
    headers: hyper::HeaderMap,
    pub(super) body: Value,
}

impl Told {
    pub(super) fn header(&self, name: &str) -> Option<String> {
        Some(self.headers.get(name)?.to_str().unwrap().to_owned())
    }
}

impl Callee {
    pub(super) async fn start() -> Self {
        let state = Arc::new(State::default());
        let server = Server::start(listener().await, Arc::clone(&state));
        Self { server, state }
    }

    pub(super) fn url(&self) -> String {
        format!("{}/callback", self.server.url())
    }

    /// What it answers from now on, and after how many milliseconds.
    pub(super) fn answers(&self, status: u16, body: &str, after_ms: u64) {
        *self.state.answer.lock().unwrap() = (status, body.to_owned(), after_ms);
    }

    pub(super) fn told(&self) -> Vec<Told> {
        self.state.told.lock().unwrap().clone()
    }
}

impl Service for State {
    fn admits(&self) -> bool {
        true
    }

    async fn serve(self: Arc<Self>, request: HttpRequest<Incoming>) -> Option<Answer> {
        let headers = request.headers().clone();
        let body: Bytes = server::body(request.into_body()).await?;
        let body = serde_json::from_slice(&body).unwrap_or_default();
        self.told.lock().unwrap().push(Told { headers, body });
        let (status, body, after_ms) = self.answer.lock().unwrap().clone();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        Some(Answer {
            status,
            content_type: "application/json".to_owned(),
            headers: Vec::new(),
            body,
        })
    }
}
