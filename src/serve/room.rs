//! Room for what peers send: connections and bodies, of all peers together and of each, so that
//! none takes it from the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const CONNECTIONS: usize = 1024;
const CONNECTIONS_OF_ONE: usize = CONNECTIONS / 4;
/// Bodies at once, in KiB: who sends more waits a moment, and is then sent away.
const BODIES_KIB: usize = 24 << 10;
const BODIES_OF_ONE_KIB: usize = BODIES_KIB / 3;
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);
/// Peers that are kept in mind before those that left are forgotten.
const PEERS: usize = 256;

/// The room of one server.
#[derive(Debug)]
pub(super) struct Room {
    connections: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    /// Bodies of this size and more are parsed one at a time: a tree of what they hold may be
    /// many times as large.
    pub(super) large: Semaphore,
    peers: Mutex<HashMap<IpAddr, Arc<Peer>>>,
}

/// From how many bytes on a body is large.
pub(super) const LARGE: usize = 256 << 10;

/// The part of it that one address may take.
#[derive(Debug)]
pub(super) struct Peer {
    connections: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

/// What a body has taken so far.
#[derive(Debug, Default)]
pub(super) struct Taken {
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    kib: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            bodies: Arc::new(Semaphore::new(BODIES_KIB)),
            large: Semaphore::new(1),
            peers: Mutex::default(),
        }
    }
}

impl Room {
    /// Waits until there is room for one more connection.
    pub(super) async fn connection(&self) -> Option<OwnedSemaphorePermit> {
        self.connections.clone().acquire_owned().await.ok()
    }

    /// The part of the peer at an address.
    pub(super) fn peer(&self, address: IpAddr) -> Arc<Peer> {
        let fresh = || {
            Arc::new(Peer {
                connections: Arc::new(Semaphore::new(CONNECTIONS_OF_ONE)),
                bodies: Arc::new(Semaphore::new(BODIES_OF_ONE_KIB)),
            })
        };
        let Ok(mut peers) = self.peers.lock() else {
            return fresh();
        };
        if peers.len() >= PEERS {
            peers.retain(|_, peer| Arc::strong_count(peer) > 1);
        }
        peers.entry(address).or_insert_with(fresh).clone()
    }

    /// Takes room as a body grows to so many bytes; false where there is none soon. Nobody queues
    /// for it: a small body is not to wait behind large ones.
    pub(super) async fn grow(&self, peer: &Peer, taken: &mut Taken, bytes: usize) -> bool {
        let more = bytes.div_ceil(1024).saturating_sub(taken.kib);
        let Ok(wanted) = u32::try_from(more) else {
            return false;
        };
        if wanted == 0 {
            return true;
        }
        for _ in 0..TRIES {
            let own = peer.bodies.clone().try_acquire_many_owned(wanted);
            let all = own.and_then(|own| {
                let all = self.bodies.clone().try_acquire_many_owned(wanted)?;
                Ok((own, all))
            });
            if let Ok((own, all)) = all {
                taken.add(own, all, more);
                return true;
            }
            tokio::time::sleep(PAUSE).await;
        }
        false
    }
}

impl Peer {
    /// Room for one more connection of this address, if there is.
    pub(super) fn connection(&self) -> Option<OwnedSemaphorePermit> {
        self.connections.clone().try_acquire_owned().ok()
    }
}

impl Taken {
    fn add(&mut self, own: OwnedSemaphorePermit, all: OwnedSemaphorePermit, kib: usize) {
        self.kib += kib;
        match &mut self.permits {
            Some((of_one, of_all)) => {
                of_one.merge(own);
                of_all.merge(all);
            }
            none => *none = Some((own, all)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_takes_its_part_of_the_bodies_and_no_more() {
        let room = Room::default();
        let (one, other) = (room.peer(address(1)), room.peer(address(2)));
        let mut taken = Taken::default();
        assert!(room.grow(&one, &mut taken, BODIES_OF_ONE_KIB << 10).await);
        let mut more = Taken::default();
        assert!(!room.grow(&one, &mut more, 1).await);
        assert!(room.grow(&other, &mut more, 3 << 20).await);
        drop(taken);
        assert!(room.grow(&one, &mut Taken::default(), 3 << 20).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_takes_room_as_it_grows() {
        let room = Room::default();
        let peer = room.peer(address(1));
        let mut taken = Taken::default();
        for bytes in [1, 1024, 1025, 10_000] {
            assert!(room.grow(&peer, &mut taken, bytes).await);
        }
        assert_eq!(room.bodies.available_permits(), BODIES_KIB - 10);
        drop(taken);
        assert_eq!(room.bodies.available_permits(), BODIES_KIB);
    }

    #[test]
    fn one_address_opens_its_part_of_the_connections_and_those_that_left_are_forgotten() {
        let room = Room::default();
        let peer = room.peer(address(1));
        let open: Vec<_> = (0..CONNECTIONS_OF_ONE).map(|_| peer.connection()).collect();
        assert!(open.iter().all(Option::is_some) && peer.connection().is_none());
        for n in 0..=u8::MAX {
            let _ = room.peer(IpAddr::from([10, 0, 1, n]));
        }
        let _ = room.peer(address(2));
        assert!(room.peers.lock().unwrap().len() <= 3);
    }
}
