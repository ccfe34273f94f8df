//! What was promised beside what happened, line by line as it happens.

use serde_json::{Value, json};

use crate::cli::output::{say, say_json};
use crate::clock::Clock;

pub(super) struct Timeline {
    clock: Clock,
    started_ms: u64,
    json: bool,
    colour: bool,
    steps: Vec<Value>,
    broken: usize,
}

impl Timeline {
    pub(super) fn start(json: bool) -> Self {
        let clock = Clock::system();
        let colour = std::io::IsTerminal::is_terminal(&std::io::stdout());
        let timeline = Self {
            clock,
            started_ms: clock.mono_ms(),
            json,
            colour,
            steps: vec![],
            broken: 0,
        };
        timeline.line("dingd demo — a simulated DingTalk, a simulated alert platform, and the real daemon between them.");
        timeline.line("Every window and penalty of DingTalk is 1/20 of the real one here: \"20 a minute\" is 20 in 3 s.");
        timeline.line("People are not faster: a click must be answered within the real 2 s.");
        timeline
    }

    /// What is done next.
    pub(super) fn scene(&self, what: &str) {
        let at = self.at();
        self.line(&format!("\n{at}  {}", self.paint("1", what)));
    }

    /// One promise, and what became of it.
    pub(super) fn promise(&mut self, promised: &str, happened: &str, held: bool) {
        let mark = if held {
            self.paint("32", "✓")
        } else {
            self.paint("31;1", "✗ BROKEN")
        };
        self.line(&format!("          {mark} {promised}"));
        self.line(&format!("            {}", self.paint("2", happened)));
        let at_s = self.seconds();
        self.steps
            .push(json!({"at_s": at_s, "promised": promised, "happened": happened, "held": held}));
        self.broken += usize::from(!held);
    }

    /// What people see in the chat.
    pub(super) fn show(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("              │ {}", self.paint("36", line)));
        }
    }

    /// The summary; returns whether every promise held.
    pub(super) fn finish(&self) -> bool {
        let (count, seconds) = (self.steps.len(), self.seconds());
        if self.json {
            say_json(&json!({"held": self.broken == 0, "took_s": seconds, "steps": self.steps}));
        }
        self.line(&match self.broken {
            0 => format!("\nAll {count} promises held, in {seconds:.1} s."),
            broken => format!("\n{broken} of {count} promises were BROKEN."),
        });
        self.broken == 0
    }

    fn seconds(&self) -> f64 {
        let ms = u32::try_from(self.clock.mono_ms() - self.started_ms).unwrap_or(u32::MAX);
        f64::from(ms) / 1_000.0
    }

    fn at(&self) -> String {
        format!("{:6.1} s", self.seconds())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    fn line(&self, text: &str) {
        if !self.json {
            say(text);
        }
    }
}
