//! Stopping in order: SIGTERM or SIGINT once drains, twice aborts.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Handed to everything that must stop.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

/// Told when to stop.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// A pair of them.
pub fn pair() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Returns once it is time to stop, or nobody is left who could say so.
    pub async fn wait(&self) {
        let _ = self.0.clone().wait_for(|stop| *stop).await;
    }

    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }
}

/// Runs a process's tasks until it is told to stop. Any end but the asked-for one ends all:
/// no part runs on alone.
pub async fn until_stopped(mut tasks: JoinSet<()>, stop: &Stop, what: &str) -> std::io::Result<()> {
    while let Some(ended) = tasks.join_next().await {
        if !stop.is_stopped() {
            let why = ended
                .err()
                .map_or("ended".to_owned(), |error| error.to_string());
            return Err(std::io::Error::other(format!(
                "a part of the {what} stopped: {why}"
            )));
        }
    }
    Ok(())
}

/// Waits for a signal that asks the process to end; a second one ends it at once.
pub async fn signalled() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
