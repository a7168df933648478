//! Stopping in order: SIGTERM or SIGINT once drains, twice aborts.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

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
