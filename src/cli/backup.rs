//! `dingd backup` and `dingd restore`: a copy of the journal while the daemon runs, and the way back.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::journal::{show, state_dir};
use super::output::{complain, finish, say};
use super::{Target, client};
use crate::admin::socket::BACKUP_PREFIX;
use crate::journal::copy;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Where the backup goes: a file that is not there yet.
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArguments {
    /// The configuration, to find the state directory.
    #[arg(long, default_value = "/etc/dingd/config.toml", value_name = "FILE")]
    config: PathBuf,
    /// JSON for programs.
    #[arg(long)]
    json: bool,
    /// The backup.
    file: PathBuf,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let answer = back_up(arguments);
    finish(answer, arguments.target.json, |report| {
        say(&format!("{} holds:", arguments.file.display()));
        show(report);
    })
}

/// The daemon may write only in its own directory; from there this command fetches the copy.
fn back_up(arguments: &Arguments) -> Result<Value, String> {
    let file = &arguments.file;
    if file.exists() {
        return Err(format!(
            "{} is there already; name a new file",
            file.display()
        ));
    }
    if is_the_daemons(file) {
        return Err(format!(
            "{}: in its directory the daemon removes what is called {BACKUP_PREFIX}…; choose another name",
            file.display()
        ));
    }
    let report = client::ask(&arguments.target, "POST", "/v1/backup", None)?;
    let made = report.get("file").and_then(Value::as_str);
    let made = Path::new(made.ok_or("the daemon named no file")?);
    let socket = client::socket(&arguments.target)?;
    // This may be root and the daemon is not: it does not get to choose what is read and removed.
    if made.parent() != socket.parent() || !is_the_daemons(made) {
        return Err(format!("{} is not a backup of the daemon", made.display()));
    }
    let fetched = fetch(made, file)
        .map_err(|error| format!("{} → {}: {error}", made.display(), file.display()))
        .and_then(|()| copy::check_backup(file).map_err(|error| error.to_string()))
        .and_then(|found| {
            let same = report.get("tables") == Some(&json!(found.tables));
            same.then_some(())
                .ok_or_else(|| format!("{} differs from what was made", file.display()))
        });
    std::fs::remove_file(made).map_err(|error| format!("{}: {error}", made.display()))?;
    if fetched.is_err() && std::fs::remove_file(file).is_err() {
        complain(&format!("{} is not a good backup", file.display()));
    }
    fetched.map(|()| report)
}

/// Whether a backup is called as the daemon calls its own.
fn is_the_daemons(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(BACKUP_PREFIX))
}

fn fetch(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut made = std::fs::File::options()
        .read(true)
        .custom_flags(no_link)
        .open(from)?;
    let mut copy = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    std::io::copy(&mut made, &mut copy)?;
    copy.sync_all()?;
    let parent = to.parent().filter(|dir| !dir.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

pub(super) fn restore(arguments: &RestoreArguments) -> ExitCode {
    let dir = match state_dir(&arguments.config) {
        Ok(dir) => dir,
        Err(error) => {
            complain(&error);
            return ExitCode::from(super::BAD_CONFIG);
        }
    };
    let answer = copy::restore(&dir, &arguments.file)
        .map(|report| json!(report))
        .map_err(|error| error.to_string());
    finish(answer, arguments.json, |report| {
        say(&format!("{} now holds:", dir.display()));
        show(report);
        say(
            "The store that was there is kept beside it as *.before-restore. What waited when the backup was \
             made, and was sent since, is sent again. / 原数据保留为 *.before-restore；备份时还在等待、之后已发出的消息会再次发送。",
        );
    })
}
