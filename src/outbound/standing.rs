//! How the limits of a target stand, in the headers of answers: `RateLimit-Policy` and `RateLimit` of the
//! IETF's draft (draft-ietf-httpapi-ratelimit-headers).

use super::request::Asked;
use super::send::limits;
use super::{Route, Settings};
use crate::delivery::state::Priority;
use crate::egress::Egress;
use crate::egress::limit::Standing;
use crate::http::problem::{self, Answer};

/// Where a message is to go, as far as limits see it.
#[derive(Debug)]
pub(super) struct Place {
    route: Route,
    app: String,
    target: String,
    critical: bool,
}

impl Place {
    pub(super) fn of(asked: &Asked) -> Self {
        Self {
            route: asked.route,
            app: asked.message.app.clone(),
            target: asked.message.to.target().to_owned(),
            critical: asked.priority == Priority::Critical,
        }
    }

    /// Of a change of one of the app's cards.
    pub(super) fn of_change(route: Route, app: &str, priority: Priority) -> Self {
        Self {
            route,
            app: app.to_owned(),
            target: String::new(),
            critical: priority == Priority::Critical,
        }
    }

    /// Of a pool that of the robot that can take most.
    pub(super) fn standing(&self, egress: &Egress, settings: &Settings) -> Vec<Standing> {
        let carriers = match settings.pools.get(&self.target) {
            Some(robots) if self.route == Route::Webhook => robots.as_slice(),
            _ => std::slice::from_ref(&self.target),
        };
        carriers
            .iter()
            .map(|carrier| egress.standing(&limits(self.route, &self.app, carrier), self.critical))
            .max_by_key(|standing| standing.iter().map(|limit| limit.left).min())
            .unwrap_or_default()
    }
}

/// Tells how these limits stand.
pub(super) fn tell(answer: Answer, standing: &[Standing]) -> Answer {
    let list = |one: &dyn Fn(&Standing) -> String| {
        let items: Vec<_> = standing.iter().map(one).collect();
        items.join(", ")
    };
    let policy = list(&|limit| {
        let window_s = limit.window_ms.div_ceil(1_000);
        format!("\"{}\";q={};w={window_s}", limit.kind.label(), limit.count)
    });
    let left = list(&|limit| {
        let resets_in_s = limit.resets_in_ms.div_ceil(1_000);
        format!(
            "\"{}\";r={};t={resets_in_s}",
            limit.kind.label(),
            limit.left
        )
    });
    let answer = problem::with_header(answer, "ratelimit-policy", &policy);
    problem::with_header(answer, "ratelimit", &left)
}

/// The client itself asks too often.
pub(super) fn client_used_up(answer: Answer, per_s: u32) -> Answer {
    let policy = format!("\"client\";q={per_s};w=1");
    let answer = problem::with_header(answer, "ratelimit-policy", &policy);
    problem::with_header(answer, "ratelimit", "\"client\";r=0;t=1")
}
