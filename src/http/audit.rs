//! Every change that a client or the operator makes is one line of the log: who, what, about what, and
//! what came of it.

use crate::http::problem::Problem;
use crate::secret::printable;

/// What is logged of one filter or one result, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// Who changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// A client of the API, by its name. It may change only what is its own.
    Client(String),
    /// Whoever may use the admin socket.
    Operator,
}

impl Who {
    /// The name in the log and in reasons.
    pub fn name(&self) -> &str {
        match self {
            Self::Client(name) => name,
            Self::Operator => "operator",
        }
    }

    /// Whether what `client` sent is theirs.
    pub fn owns(&self, client: &str) -> bool {
        match self {
            Self::Client(name) => name == client,
            Self::Operator => true,
        }
    }

    fn door(&self) -> &'static str {
        match self {
            Self::Client(_) => "api",
            Self::Operator => "socket",
        }
    }
}

/// Logs a change that was asked for, and what came of it.
pub fn note(who: &Who, what: &str, about: &str, result: &str) {
    let about = printable(about, TEXT_BYTES_MAX);
    let result = printable(result, TEXT_BYTES_MAX);
    tracing::info!(
        target: "dingd::audit",
        who = who.name(), door = who.door(), what, about, result,
        "a change was asked for"
    );
}

/// Does `work` to its end, even if whoever asked for it hangs up meanwhile, and logs what came of it.
pub async fn audited<T: Send + 'static>(
    who: &Who,
    what: &'static str,
    about: &str,
    show: fn(&T) -> String,
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    let (who, about) = (who.clone(), about.to_owned());
    let task = tokio::spawn(async move {
        let done = work.await;
        let result = done
            .as_ref()
            .map_or_else(|problem| problem.slug().to_owned(), show);
        note(&who, what, &about, &result);
        done
    });
    task.await.unwrap_or_else(|error| {
        tracing::error!(%error, what, "a change was not finished");
        let detail = "it may have been done in part; see the log";
        Err(Problem::new(500, "internal", "Not finished", detail))
    })
}
