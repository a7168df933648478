//! A process that was started here: its log in a file, its end certain.

use anyhow::Context;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

#[derive(Debug)]
pub struct Process {
    pub name: String,
    pub log: PathBuf,
    child: Child,
    /// Ends the process when this one dies without a word: a test binary's statics are
    /// never dropped.
    watchdog: Option<Child>,
}

impl Process {
    /// Starts a program with its output in `folder/name.log`.
    pub fn start(name: &str, folder: &Path, command: &mut Command) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        let watchdog = watchdog(child.id())?;
        Ok(Self {
            name: name.to_owned(),
            log,
            child,
            watchdog: Some(watchdog),
        })
    }

    /// Lets the process live on after this one.
    pub fn leave(mut self) {
        self.dismiss();
        std::mem::forget(self);
    }

    fn dismiss(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            let _ = watchdog.kill();
            let _ = watchdog.wait();
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.dismiss();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits until it is gone.
    pub fn terminate(&mut self) {
        let id = self.child.id().to_string();
        self.dismiss();
        let _ = Command::new("kill").args(["-TERM", &id]).status();
        let _ = self.child.wait();
    }

    /// SIGSTOP or SIGCONT: a process that stands still.
    pub fn signal(&self, name: &str) {
        let _ = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills `id` once our end of its pipe is closed.
fn watchdog(id: u32) -> anyhow::Result<Child> {
    let script = "cat >/dev/null; kill -9 \"$0\" 2>/dev/null";
    let mut command = Command::new("sh");
    command.args(["-c", script, &id.to_string()]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().context("cannot start a watchdog")
}
