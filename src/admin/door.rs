//! `/live`, `/ready`, `/metrics`, and nothing else.

use std::sync::{Arc, OnceLock};

use hyper::Method;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;

use super::socket::Books;
use crate::health::Health;
use crate::http::listen::Request;
use crate::http::problem::{self, Answer, Problem};
use crate::metrics;

/// The handler of the admin door.
#[derive(Debug, Clone)]
pub struct Door {
    /// What `/ready` says.
    pub health: Health,
    /// What `/metrics` says.
    pub recorder: PrometheusHandle,
    /// Where gauges come from, once the journal is read.
    pub books: Arc<OnceLock<Arc<Books>>>,
}

impl Door {
    /// Answers one request.
    pub async fn handle(self, request: Request) -> Answer {
        let path = request.head.uri.path();
        if !matches!(path, "/live" | "/ready" | "/metrics") {
            return Problem::no_such_route().answer();
        }
        if request.head.method != Method::GET {
            return Problem::method_not_allowed("GET").answer();
        }
        match path {
            "/live" => problem::json(200, &serde_json::json!({"status": "live"})),
            "/ready" => self.ready(),
            _ => {
                if let Some(books) = self.books.get() {
                    books.measure().await;
                }
                metrics::process();
                problem::with_body(
                    200,
                    "text/plain; version=0.0.4; charset=utf-8",
                    self.recorder.render(),
                )
            }
        }
    }

    fn ready(&self) -> Answer {
        #[derive(Serialize)]
        struct Ready {
            status: &'static str,
            pending: Vec<&'static str>,
            unready: Vec<String>,
            degraded: Vec<String>,
        }
        let snapshot = self.health.snapshot();
        let (status, code) = match (snapshot.is_ready(), snapshot.degraded.is_empty()) {
            (false, _) => ("unready", 503),
            (true, true) => ("ready", 200),
            (true, false) => ("degraded", 200),
        };
        let ready = Ready {
            status,
            pending: snapshot.pending,
            unready: snapshot.unready,
            degraded: snapshot.degraded,
        };
        problem::json(code, &ready)
    }
}
