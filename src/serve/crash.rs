//! Points at which a test can stop a process dead. In release builds they do nothing.

#[cfg(debug_assertions)]
static ARMED: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Arms one point, by name.
#[cfg(debug_assertions)]
pub(crate) fn arm(point: String) {
    let _ = ARMED.set(point);
}

/// Says where it is and waits for the kill, if this is the point.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    if ARMED.get().is_some_and(|armed| armed == name) {
        eprintln!("crash point {name}");
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn point(_: &str) {}
