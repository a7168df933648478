//! Races of leaders in a deterministic simulation of API server, watches and clock.
//!
//! The leaders are the real cycle; only what is between them and the world is simulated. Every
//! request may wait, be refused, be handled with its answer lost, or arrive after its sender was
//! killed; watches lag and come back by a list; a leader that was replaced goes on as if it had
//! not been told. One seed is one story: a failure names its seed, and the seed tells it again.

mod checks;
mod leader;
pub(super) mod random;
mod server;
mod stage;
mod world;

use stage::{Sim, Story};
use std::fmt;

/// Steps of a story before the world comes to rest.
const STEPS: usize = 260;

/// Tells one story to its end.
async fn tell(seed: u64, aloud: bool) -> Result<Story, String> {
    let mut sim = Sim::new(seed, aloud);
    for _ in 0..STEPS {
        sim.step().await?;
    }
    // Whoever saw that a record was deleted lives until it is there again.
    for _ in 0..100 * STEPS {
        if !sim.is_untidy() {
            break;
        }
        sim.step().await?;
    }
    sim.quiet().await?;
    Ok(sim.story())
}

fn race(seed: u64, aloud: bool) -> Result<Story, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|e| e.to_string())?;
    let told = runtime.block_on(tell(seed, aloud));
    told.map_err(|why| format!("JOULEWARD_RACE={seed}: {why}"))
}

/// A number from the environment.
#[expect(clippy::disallowed_methods, reason = "a test has no flags")]
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

impl Story {
    fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.kills += other.kills;
        self.takeovers += other.takeovers;
        self.lost_answers += other.lost_answers;
        self.refused += other.refused;
        self.grants += other.grants;
        self.tidied += other.tidied;
        self.torn += other.torn;
        self.put_away += other.put_away;
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} writes, {} grants, {} leaders killed, {} taken over from while they went on, {} answers lost, {} calls refused, {} records put away, {} deleted by hand, {} statements among them",
            self.writes,
            self.grants,
            self.kills,
            self.takeovers,
            self.lost_answers,
            self.refused,
            self.put_away,
            self.tidied,
            self.torn
        )
    }
}

/// Tells every n-th story.
fn races(first: u64, each: u64, until: u64) -> Result<Story, String> {
    let mut sum = Story::default();
    let mut seed = first;
    while seed < until {
        sum.add(&race(seed, false)?);
        seed += each;
    }
    Ok(sum)
}

#[test]
fn a_seed_tells_the_same_story_twice() {
    for seed in 1..=5 {
        assert_eq!(race(seed, false), race(seed, false));
    }
}

/// `JOULEWARD_RACES=10000` runs more of them, `JOULEWARD_RACE=17` tells one aloud.
#[test]
fn leaders_that_race_die_and_hear_late_overdraw_nothing_leak_nothing_and_lose_no_job() {
    if let Some(seed) = asked("JOULEWARD_RACE") {
        race(seed, true).unwrap_or_else(|why| panic!("{why}"));
        return;
    }
    let seeds = asked("JOULEWARD_RACES").unwrap_or(1000);
    let each = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    let workers = (0..each).map(|first| std::thread::spawn(move || races(first, each, seeds)));
    let workers: Vec<_> = workers.collect();
    let mut sum = Story::default();
    for worker in workers {
        let story = worker.join().unwrap();
        sum.add(&story.unwrap_or_else(|why| panic!("{why}")));
    }
    assert!(sum.grants > 0 && sum.kills > 0, "{sum}");
    assert!(
        sum.put_away > 0 && sum.tidied > sum.torn && sum.torn > 0,
        "{sum}"
    );
    println!("{seeds} stories: {sum}");
}
